// Tooltips: a point's own title, also by the arrow keys on the focused chart.
(() => {
  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  tip.setAttribute("role", "status");
  document.body.append(tip);
  let active = null;
  const hide = () => { tip.hidden = true; if (active) active.classList.remove("on"); active = null; };
  const show = (point) => {
    hide();
    active = point;
    point.classList.add("on");
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    const box = point.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const left = Math.min(box.left + box.width / 2 - size.width / 2, document.documentElement.clientWidth - size.width - 8);
    tip.style.left = scrollX + Math.max(8, left) + "px";
    tip.style.top = scrollY + (box.top > size.height + 12 ? box.top - size.height - 8 : box.bottom + 8) + "px";
  };
  for (const chart of document.querySelectorAll(".panels svg[role=img]")) {
    const points = [...chart.querySelectorAll(".pt")];
    for (const point of points) {
      const title = point.querySelector("title");
      if (title) { point.dataset.tip = title.textContent; title.remove(); }
    }
    if (!points.length) continue;
    chart.setAttribute("tabindex", "0");
    chart.setAttribute("aria-label", chart.getAttribute("aria-label") + ". Arrow keys step through the points.");
    chart.addEventListener("pointerover", (event) => { const at = event.target.closest(".pt"); if (at) show(at); });
    chart.addEventListener("pointerout", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const seen = points.filter((one) => one.getClientRects().length);  // not of an arm that is switched off
      if (seen.length) show(seen[(seen.indexOf(active) + step + seen.length) % seen.length]);
    });
  }
})();

// The samples browser. Texts reach the page by textContent alone.
(() => {
  const source = document.getElementById("samples-data");
  if (!source) return;
  const { arms, judges, prompts } = JSON.parse(source.textContent);
  const [ARM, INDEX, TEXT, FINISH, FIGURES, WINS, LOSS] = [0, 1, 2, 3, 4, 5, 6];
  const kinds = ["loss", "hack", "disagreement"], names = ["gold", "proxy", "implicit", "KL", "tokens"];
  const sizes = ["loss", "suspected hack", "disagreement"];
  const PAGE = 10, MOST_WORDS = 1500;
  const at = (id) => document.getElementById(id);
  const make = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value) => value === null ? "–" : Number(value.toPrecision(3)).toString().replace("-", "−");
  const segmenter = window.Intl && Intl.Segmenter ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;
  const words = (text) => segmenter ? Array.from(segmenter.segment(text), (one) => one.segment) : text.split(/(\s+)/);
  let listed = [], shown = 0;

  // Which words of a are in the longest common subsequence with b: the rest are marked.
  function common(a, b) {
    const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--)
      for (let j = b.length - 1; j >= 0; j--)
        table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    const keptA = new Uint8Array(a.length), keptB = new Uint8Array(b.length);
    for (let i = 0, j = 0; i < a.length && j < b.length;) {
      if (a[i] === b[j]) { keptA[i++] = 1; keptB[j++] = 1; }
      else if (table[(i + 1) * width + j] >= table[i * width + j + 1]) i++; else j++;
    }
    return [keptA, keptB];
  }

  function fill(node, parts, kept) {
    let run = "", space = "", marked = false;
    const flush = () => {
      if (run) node.append(marked ? make("mark", "", run) : document.createTextNode(run));
      run = "";
    };
    parts.forEach((part, i) => {
      if (part.trim() === "") { space += part; return; }
      if (kept[i] ? marked : !marked) {  // the space between stays unmarked
        if (!marked) run += space;
        flush();
        if (marked) run = space;
        marked = !marked;
      } else run += space;
      run += part;
      space = "";
    });
    flush();
    node.append(space);
  }

  function side(row, kind) {
    const box = make("div");
    box.append(make("h4", "", arms[row[ARM]] + ", sample " + row[INDEX]));
    const text = make("p", row[TEXT] === "" ? "text muted" : "text", row[TEXT] === "" ? "(empty)" : "");
    text.dir = "auto";
    box.append(text);
    const figures = names.map((name, i) => row[FIGURES][i] === null ? "" : name + " " + number(row[FIGURES][i]));
    const wins = judges.map((judge, i) => {
      const won = row[WINS][i];
      if (won === null || won === undefined) return "";
      return (won > 0.5 ? "beats sft" : won < 0.5 ? "loses to sft" : "ties with sft") + " by " + judge;
    });
    const size = kind >= 0 && row[LOSS + kind] !== null ? sizes[kind] + " " + number(row[LOSS + kind]) : "";
    const told = [size, ...figures, row[FINISH] === "stop" ? "" : "ends by " + row[FINISH], ...wins];
    box.append(make("p", "figures", told.filter(Boolean).join(" · ")));
    return [box, text];
  }

  function card([prompt, row]) {
    const kind = kinds.indexOf(at("kind").value), against = Number(at("against").value);
    const other = prompt.rows.find((one) => one[ARM] === against && one[INDEX] === row[INDEX] && one !== row);
    const node = make("article", "card"), title = make("h3", "text", prompt.text);
    title.dir = "auto";
    const pair = make("div", "pair");
    node.append(title, pair);
    const [left, leftText] = side(row, kind);
    pair.append(left);
    const put = (target, text) => { if (text !== "") target.textContent = text; };
    if (!other) { put(leftText, row[TEXT]); return node; }
    const [right, rightText] = side(other, -1);
    pair.append(right);
    const [a, b] = [words(row[TEXT]), words(other[TEXT])];
    if (at("marks").checked && a.length <= MOST_WORDS && b.length <= MOST_WORDS) {
      const [keptA, keptB] = common(a, b);
      fill(leftText, a, keptA);
      fill(rightText, b, keptB);
    } else { put(leftText, row[TEXT]); put(rightText, other[TEXT]); }
    return node;
  }

  function more() {
    const next = listed.slice(shown, shown + PAGE);
    at("cards").append(...next.map(card));
    shown += next.length;
    at("more").hidden = shown >= listed.length;
    at("found").textContent = listed.length ? "Showing " + shown + " of " + listed.length + "." : "Nothing like that.";
  }

  function refresh() {
    const kind = kinds.indexOf(at("kind").value), arm = at("arm").value, against = Number(at("against").value);
    const wanted = at("search").value.trim().toLowerCase();
    listed = [];
    for (const prompt of prompts)
      for (const row of prompt.rows) {
        if (arm === "" ? row[ARM] === against : row[ARM] !== Number(arm)) continue;
        if (kind >= 0 && row[LOSS + kind] === null) continue;
        if (wanted && !prompt.text.toLowerCase().includes(wanted) && !row[TEXT].toLowerCase().includes(wanted)) continue;
        listed.push([prompt, row]);
      }
    if (kind >= 0) listed.sort((one, two) => two[1][LOSS + kind] - one[1][LOSS + kind]);
    at("cards").replaceChildren();
    shown = 0;
    more();
  }

  at("browse").hidden = at("found").hidden = false;
  at("browse").addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  at("browse").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  at("more").addEventListener("click", more);
  refresh();
})();
