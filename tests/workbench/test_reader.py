"""A reward model of another tokenizer: messages read back, ids made anew, the same for every place that scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import reward_model
from pipelines.graph import build_graph
from pipelines.sources import resolve_origin
from pipelines.sources_models import model_sources
from tests.ml_helpers import CPU, PAD, STOPS, Log, World, build_world, ppo_config, reward_config, tiny_model
from tests.workbench.test_match import made, matched
from workbench.actor_critic import ActorCritic
from workbench.batching import make_batch
from workbench.config import load_config
from workbench.conversation import Conversations
from workbench.errors import ConfigError, DataError, DivergenceError, IntegrityError
from workbench.gold import reward_model_scorer
from workbench.label_targets import expected_digest
from workbench.match_facts import RewardLineage
from workbench.model_files import check_trained_head, context_of_folder, hub_commit, tensor_shapes
from workbench.models import load_reward_model, new_reward_model, save_model, trunk_digest
from workbench.packed import PackedPairs
from workbench.policy_set import PolicySet, read_policy_set
from workbench.reader import Reader, check_reading
from workbench.scoring import reward_scores
from workbench.staged import StagedPairs
from workbench.store import Store
from workbench.tokens import load_tokenizer

CHAT = (
    "{% if messages[0]['role'] != 'system' %}<s>system\nBe kind.</s>\n{% endif %}"
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def byte_tokenizer(chat_template: str | None = None) -> Any:
    """Reads any text byte by byte, with its own special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made_of = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    made_of.chat_template = chat_template
    return made_of


def foreign(folder: Path, *, context: int = 512, scale: float = 1.0, chat_template: str | None = None) -> Path:
    """A reward model that reads bytes, of another size than the policy."""
    tokenizer = byte_tokenizer(chat_template)
    base = tiny_model(tokenizer, 3, hidden_size=8, num_layers=2)
    base.config.max_position_embeddings = context
    save_model(base, tokenizer, folder / "base")
    model = new_reward_model(folder / "base", CPU, 4, pad_id=0)
    with torch.no_grad():
        model.score.weight.mul_(scale)
    save_model(model, tokenizer, folder / "reward")
    return folder / "reward"


# ------------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "hello")],
        [("user", "a\n\nb"), ("assistant", "yes </s> no"), ("user", "why?")],
        [("system", "Be brief."), ("user", "hello")],
    ],
)
def test_messages_are_read_back_from_the_template(messages: list[tuple[str, str]]) -> None:
    tokenizer = byte_tokenizer(CHAT)
    told = [{"role": role, "content": text} for role, text in messages]
    prompt = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    assert Conversations(tokenizer).messages(prompt) == told


def test_what_the_template_did_not_write_is_refused_and_plain_texts_are_one_message() -> None:
    with pytest.raises(DataError, match="cannot be read back as messages"):
        Conversations(byte_tokenizer(CHAT)).messages("hello")
    plain = Conversations(byte_tokenizer())
    assert plain.messages(" hello ") == [{"role": "user", "content": "hello"}]
    dialogue = plain.messages("\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: go\n\nAssistant:")
    assert [(one["role"], one["content"]) for one in dialogue] == [
        ("user", "hi"), ("assistant", "yes?"), ("user", "go")
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


def adopted(world: World, folder: Path, work: Path, **changes: Any) -> PolicySet:
    out = world.out("adopted")
    config = {
        "template": "text", "center_samples": 16, "max_response_tokens": 8, "max_length": 16, "stop_ids": STOPS,
        "trust_remote_code": False,
    }  # fmt: skip
    inputs = {"reward_model": folder, "sft": world.sft, "pairs": world.pairs, "prompts": world.prompts}
    reward_model.adopt(config | changes, inputs, out, Log(work))
    return read_policy_set(out)


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> PolicySet:
    folder = tmp_path_factory.mktemp("foreign")
    return adopted(world, foreign(folder), folder / "work")


def test_scores_are_those_of_the_texts_whoever_asks(world: World, other: PolicySet) -> None:
    """Against the scorer that gold uses, which reads texts and knows nothing of ids."""
    assert other.facts["external"] is True
    assert other.facts["reading"]["own_tokenizer"] is True
    assert other.facts["consumed_pairs"] is None
    pairs = PackedPairs(world.pairs)
    rows = [pairs.as_lists(row) for row in range(12)]
    prompts, responses = ([row[name] for row in rows] for name in ("prompt_ids", "chosen_ids"))
    responses[0] = responses[0][:-1]  # one that was cut
    model = load_reward_model(other.folder(), CPU)
    found = reward_scores(model, prompts, responses, pad_id=PAD, batch_size=5)
    reader = model.reader
    texts = [reader.texts(p, r) for p, r in zip(prompts, responses, strict=True)]
    assert [one[2] for one in texts] == [False, *[True] * 11]
    plain, _ = other.folder(), None
    expected = reward_model_scorer(plain)(*(list(column) for column in zip(*texts, strict=True)))
    assert found == pytest.approx(expected, abs=1e-5)
    assert float(np.std(found)) > 1e-3
    assert model.reader.ids(*texts[0])[-1] != 1  # no eos after a cut response
    assert model.reader.ids(*texts[1])[-1] == 1


def test_one_of_the_policys_own_tokenizer_reads_its_ids_as_they_are(world: World, tmp_path: Path) -> None:
    found = adopted(world, world.reward_model / "checkpoints" / "last", tmp_path / "work")
    assert found.facts["reading"] == {"template": "text", "own_tokenizer": False}
    assert not hasattr(load_reward_model(found.folder(), CPU), "reader")


def test_its_own_chat_template_is_what_it_reads(world: World, tmp_path: Path) -> None:
    found = adopted(world, foreign(tmp_path, chat_template=CHAT), tmp_path / "work", template="chat")
    reader = Reader(found.folder())
    text = reader.own.decode(reader.ids("hello", " you", True))
    assert text == "<s>system\nBe kind.</s>\n<s>user\nhello</s>\n<s>assistant\nyou</s>\n"


def test_what_cannot_work_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"got no score.weight \(LlamaForCausalLM\), expected a sequence class"):
        adopted(world, world.model, tmp_path / "a")
    with pytest.raises(DataError, match="reads 20 tokens"):
        adopted(world, foreign(tmp_path / "short", context=20), tmp_path / "b")
    with pytest.raises(DivergenceError, match="constant"):
        adopted(world, foreign(tmp_path / "flat", scale=0.0), tmp_path / "c")


def test_texts_that_decoding_changes_are_refused(world: World, other: PolicySet) -> None:
    reader = Reader(other.folder())
    assert reader.policy.unk_token_id is not None
    rows = [([40, 41], [42, 1])] * 20
    assert check_reading(reader, rows)["changed"] == 0
    with pytest.raises(DataError, match="1 of 20 texts do not survive decoding"):
        check_reading(reader, [*rows[:-1], ([40], [reader.policy.unk_token_id, 1])])


# ------------------------------------------------------------------------------------------------ who uses it


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0, "target_modules": ["all-linear"]}])
@pytest.mark.parametrize("critic", ["separate", "head"])
def test_ppos_critic_starts_at_zero_on_the_sft(
    world: World, other: PolicySet, critic: str, lora: dict[str, Any] | None
) -> None:
    inputs = {"sft": world.sft, "reward_model": other.root}
    models = ActorCritic(ppo_config(critic=critic) | {"lora": lora}, inputs, CPU, seed=0)
    batch = make_batch([[40, 41], [42]], [[50, 51, 1], [52, 1]], PAD)
    expected = reward_scores(load_reward_model(other.folder(), CPU), [[40, 41], [42]], [[50, 51, 1], [52, 1]], pad_id=0)
    assert models.scores(batch).tolist() == pytest.approx([one - other.facts["center"] for one in expected], abs=1e-5)
    assert models.values(batch).abs().max() == 0.0
    assert models.facts["reward_tensors"] == other.facts["sft_tensors"]
    if lora is None:
        assert models.facts["critic_tensors"] == models.facts["sft_tensors"]


def test_the_certificate_declares_it(world: World) -> None:
    sides = matched()
    lineage = RewardLineage(name="main", sft_tensors="7" * 64, external=True)
    for label in ("ppo", "best_of_n"):
        sides[label] = replace(sides[label], reward=lineage, pair_rows=None, consumed_labels=None, expected_labels=None)
    told = {check.name: check for check in made(sides).checks}
    assert made(sides).ok
    for name in ("same_pairs", "same_labels"):
        assert "DECLARED to differ: ppo, best_of_n on the reward model main 777777777777" in told[name].detail
        assert told[name].ok is True
    assert told["reward_lineage"].ok == "not_applicable"
    labeled = replace(sides["dpo"], label="dpo-2", labels="main by soft, 3 of 9 turned", reward=lineage)
    assert made(sides | {"dpo-2": labeled}).ok
    other_pairs = made(sides | {"dpo-2": replace(labeled, pair_rows="3" * 64)})
    assert [check.name for check in other_pairs.checks if check.ok is False] == ["same_pairs"]
    sides["best_of_n"] = replace(sides["best_of_n"], parametrization="external")
    assert made(sides).ok  # nothing was trained for it
    sides["ppo"] = replace(sides["ppo"], reward=replace(lineage, external=False))
    assert not made(sides).ok


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward_models.main={path: some/model, epochs: 2}", "epochs: has no effect with path"),
        ("reward_models.main={revision: abc}", "revision: has no effect without path or base"),
        ("reward_models.main={template: chat}", "template: has no effect without path or base"),
    ],
)
def test_settings_that_cannot_matter_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(Path("smoke"), [override])


def test_the_graph_adopts_and_trains_nothing(world: World, tmp_path: Path) -> None:
    path = world.reward_model / "checkpoints" / "last"
    comparison = load_config(Path("smoke"), [f"reward_models.main={{path: {path}, center_samples: 16}}"])
    stage = build_graph(comparison, resolve_origin(comparison, Store.open(tmp_path / "home"))).stages[
        "reward_model[main,seed=0]"
    ]
    assert stage.function == "pipelines.reward_model:adopt"
    assert stage.inputs["reward_model"].path == str(path)  # type: ignore[union-attr]
    assert str(path) not in json.dumps(dict(stage.config))
    origin = resolve_origin(comparison, Store.open(tmp_path / "home"))
    (told,) = model_sources(comparison, origin)
    assert (told.role, told.source, told.commit) == ("reward_models/main", "last", None)
    assert told.digest == origin.rewards["main"].digest
    hub = replace(origin.rewards["main"], path=f"/cache/snapshots/{'b' * 40}")
    (told,) = model_sources(comparison, replace(origin, rewards={"main": hub}))
    assert told.commit == "b" * 40


def test_facts_of_a_folder_are_read_without_its_weights(world: World, tmp_path: Path) -> None:
    folder = world.reward_model / "checkpoints" / "last"
    check_trained_head(folder)
    assert tensor_shapes(folder)["score.weight"] == ((1, 16), "F32")
    assert context_of_folder(folder) == 64
    assert hub_commit(tmp_path / "snapshots" / ("a" * 40)) == "a" * 40
    assert hub_commit(folder) is None
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(IntegrityError, match="header cannot be read"):
        tensor_shapes(tmp_path)
    assert trunk_digest(load_reward_model(folder, CPU))
    assert load_tokenizer(folder).pad_token_id == PAD


# ------------------------------------------------------------------------------- trained from another model's trunk


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4.0, "target_modules": ["all-linear"]}])
def test_a_reward_model_can_start_from_another_model_with_another_tokenizer(
    world: World, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    base, out = foreign(tmp_path).parent / "base", world.out("reward_model")
    inputs = {part: getattr(world, part) for part in ("sft", "pairs", "prompts")} | {"base": base}
    config = reward_config(epochs=1) | {"template": "text", "max_length": 16, "lora": lora}
    reward_model.run(config, inputs, out, Log(tmp_path / "work"))
    made = read_policy_set(out)
    pairs = PackedPairs(world.pairs)
    train = pairs.split_rows("train")
    assert made.facts["base"] is True
    assert made.facts["sft_tensors"] == trunk_digest(new_reward_model(base, CPU, 0, pad_id=0))
    # What it consumed is told in the ids that every arm shares.
    assert made.facts["consumed_pairs"] == pairs.ids_digest(train)
    assert made.facts["consumed_labels"] == expected_digest(world.pairs, train)
    model = load_reward_model(made.folder(), CPU)
    rows = [pairs.as_lists(row) for row in range(6)]
    prompts, responses = ([row[name] for row in rows] for name in ("prompt_ids", "chosen_ids"))
    texts = [model.reader.texts(p, r) for p, r in zip(prompts, responses, strict=True)]
    scores = reward_model_scorer(made.folder())(*(list(column) for column in zip(*texts, strict=True)))
    assert reward_scores(model, prompts, responses, pad_id=PAD) == pytest.approx(scores, abs=1e-5)
    critic = ActorCritic(ppo_config() | {"lora": lora}, {"sft": world.sft, "reward_model": out}, CPU, seed=0)
    assert critic.values(make_batch(prompts, responses, PAD)).abs().max() == 0.0


def test_a_base_that_is_too_short_is_refused_before_it_trains(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.trl_adapter.train_reward", lambda *given: pytest.fail("it trained"))
    base = foreign(tmp_path, context=48).parent / "base"
    inputs = {part: getattr(world, part) for part in ("sft", "pairs", "prompts")} | {"base": base}
    config = reward_config(epochs=1) | {"template": "text", "max_length": 96, "lora": None}
    with pytest.raises(DataError, match="the reward model reads 48 tokens, but"):
        reward_model.run(config, inputs, world.out("reward_model"), Log(tmp_path / "work"))


def test_pairs_read_anew_are_the_texts_of_the_pairs(world: World, other: PolicySet, tmp_path: Path) -> None:
    reader, pairs = Reader(other.folder()), PackedPairs(world.pairs)
    found = reward_model.reread(StagedPairs(pairs), pairs, reader, tmp_path / "pairs", "cpu")
    packed = PackedPairs(tmp_path / "pairs")
    for row in range(len(pairs)):
        given, made_of = pairs.as_lists(row), packed.as_lists(row)
        for side in ("chosen", "rejected"):
            told = reader.ids(*reader.texts(given["prompt_ids"], given[f"{side}_ids"]))
            assert made_of["prompt_ids"] + made_of[f"{side}_ids"] == told
            assert made_of[f"{side}_ids"]
    assert found.ids_digest([0, 1]) == pairs.ids_digest([0, 1])


def test_the_certificate_declares_another_trunk_and_still_compares_the_pairs() -> None:
    sides = matched()
    lineage = RewardLineage(name="main", sft_tensors="7" * 64, base=True)
    for label in ("ppo", "best_of_n"):
        sides[label] = replace(sides[label], reward=lineage)
    told = {check.name: check for check in made(sides).checks}
    assert made(sides).ok
    assert (
        "DECLARED to differ: ppo, best_of_n on main 777777777777, not the SFT's trunk" in told["reward_lineage"].detail
    )
    sides["ppo"] = replace(sides["ppo"], pair_rows="3" * 64)
    assert [check.name for check in made(sides).checks if check.ok is False] == ["same_pairs"]


SHARED = Path(__file__).parents[2].parent / "shared" / "models" / "stories260k"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the stories260k model is not beside this checkout")
def test_stories_of_a_real_model_are_read_by_bytes(tmp_path: Path) -> None:
    from workbench.estimate import size_of
    from workbench.models import load_policy, parameter_count
    from workbench.reader import write_reader
    from workbench.tokens import encode_prompt, encode_response

    policy = load_tokenizer(SHARED)
    byte_tokenizer().save_pretrained(tmp_path)
    write_reader(tmp_path, policy, [2], "text", None)
    reader = Reader(tmp_path)
    prompt, response = "Once upon a time, there was a cat", ' named Tom. He said "hello".'
    ids = encode_prompt(policy, prompt), encode_response(policy, prompt, response, stop_ids=[2])
    assert reader.texts(*ids) == (prompt, response, True)
    assert reader.own.decode(reader.ids(*reader.texts(*ids))) == f"{prompt}{response}<eos>"
    assert check_reading(reader, [ids])["changed"] == 0
    assert size_of(SHARED).parameters == parameter_count(load_policy(SHARED, CPU))
