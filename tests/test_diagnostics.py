"""The token metrics inside the trainers: right, complete, and without any effect on what is trained."""

import json

import pytest
import reference
import torch
from trl import GRPOConfig, GRPOTrainer
from trl_runs import build, dataset, logs, ours, scripted_rollouts, stock, weights

from covgrpo.callbacks import RunWriter, TokenDiagnostics
from covgrpo.metrics import summarise
from covgrpo.report import collect, read_run
from covgrpo.trl.rollout import Rollout

pytestmark = pytest.mark.slow

SETUPS = [
    {},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
    {"num_iterations": 2},
    {"beta": 0.1},
]


class Observed(TokenDiagnostics, GRPOTrainer):
    pass


def observed(folder, **options):
    return build(Observed, GRPOConfig, folder, **options)


def token_table(seen):
    """The step's valid tokens as the float64 reference weighs them, from what the loss was handed."""
    rows = sorted((row for inputs, scores in seen for row in rows_of(inputs, scores)), key=lambda row: row["key"])
    logps, advantages = [row["logps"] for row in rows], [row["advantage"] for row in rows]
    mask, groups = [row["mask"] for row in rows], [row["key"] // 4 for row in rows]
    weight = reference.gaussian_weights(logps, advantages, mask, groups)
    c = reference.token_covariance(logps, advantages, mask, groups)
    return [
        {
            "group": groups[i],
            "logp": row["logps"][t],
            "advantage": row["advantage"],
            "weight": weight[i][t],
            "c": c[i][t],
            "entropy": row["entropies"][t],
        }
        for i, row in enumerate(rows)
        for t, valid in enumerate(row["mask"])
        if valid
    ]


def rows_of(inputs, scores):
    width, rollout = 10, Rollout.read(inputs)
    for i, key in enumerate(rollout.row_B.tolist()):

        def padded(values, row=i):
            values = values[row].double().tolist()
            return values + [0.0] * (width - len(values))

        yield {
            "key": key,
            "logps": padded(rollout.logps_BT),
            "advantage": rollout.advantages_B[i].item(),
            "mask": padded(inputs["completion_mask"]),
            "entropies": padded(scores[1].detach()),
        }


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_logged_metrics_equal_the_reference(tmp_path, size):
    """Whatever the micro-batch, on fixed rollouts, group by group."""
    trainer = ours(
        tmp_path, rollouts=scripted_rollouts(3), max_steps=1, per_device_train_batch_size=size,
        gradient_accumulation_steps=16 // size,
    )  # fmt: skip
    seen, score = [], trainer._get_per_token_logps_and_entropies
    compute = type(trainer)._compute_loss

    def scoring(*args, **kwargs):
        result = score(*args, **kwargs)
        if torch.is_grad_enabled():
            seen[-1] = (seen[-1][0], result)
        return result

    def computing(model, inputs):
        seen.append((inputs, None))
        return compute(trainer, model, inputs)

    trainer._get_per_token_logps_and_entropies, trainer._compute_loss = scoring, computing
    trainer.train()
    logged = trainer.state.log_history[0]
    for name, value in reference.summary(token_table(seen)).items():
        assert logged[name] == pytest.approx(value, rel=2e-5, abs=1e-6), name
    assert logged["entropy/predicted"] == pytest.approx(-1e-3 * logged["cov/weighted"])


@pytest.mark.parametrize("options", SETUPS, ids=str)
def test_observing_stock_trl_changes_nothing(tmp_path, options):
    plain = stock(tmp_path / "a", rollouts=scripted_rollouts(5), **options)
    plain.train()
    watched = observed(tmp_path / "b", rollouts=scripted_rollouts(5), **options)
    watched.train()
    assert torch.equal(weights(watched), weights(plain))
    assert all(torch.equal(a, b) for a, b in zip(watched.gradients, plain.gradients, strict=True))
    kept = {"loss", "grad_norm", "reward", "kl"}
    for a, b in zip(watched.state.log_history, plain.state.log_history, strict=True):
        assert {name: a.get(name) for name in kept} == {name: b.get(name) for name in kept}


@pytest.mark.parametrize("options", SETUPS[:4], ids=str)
def test_stock_trl_observed_has_the_metrics_of_ours_without_weights(tmp_path, options):
    watched = observed(tmp_path / "a", rollouts=scripted_rollouts(5), max_steps=2, **options)
    watched.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(5), max_steps=2, weighting="none", **options)
    mine.train()
    names = ["entropy", "cov/mean", "cov/sigma", "cov/pos_0.2", "cov/neg_0.2", "update/top_share", "weight/ess"]
    found, expected = torch.tensor(logs(watched, *names)), torch.tensor(logs(mine, *names))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert (found[:, -1] == 1).all()


def test_the_tokens_of_a_step_are_those_that_were_sampled(tmp_path):
    drawn = []
    rollouts = scripted_rollouts(5)

    def recording(*args, **kwargs):
        result = rollouts(*args, **kwargs)
        drawn.append(result[0])
        return result

    trainer = ours(tmp_path, rollouts=recording, max_steps=2, per_device_train_batch_size=4,
                   gradient_accumulation_steps=4)  # fmt: skip
    trainer.train()
    tokens = trainer.step_tokens
    assert tokens.row.min() == 16 and tokens.row.max() == 31, "rows of the second rollout batch"
    for row, ids in enumerate(drawn[1]):
        index = (tokens.row == 16 + row).nonzero()[:, 0]
        assert tokens.token[index[tokens.position[index].argsort()]].tolist() == ids
    assert summarise(tokens)["cov/sigma"] == pytest.approx(trainer.state.log_history[1]["cov/sigma"])


@pytest.mark.parametrize("size", [4, 16])
def test_the_entropy_probe_measures_and_changes_nothing(tmp_path, size):
    options = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size, "max_steps": 4,
        "optim": "sgd", "max_grad_norm": 1e9, "learning_rate": 1e-3,
    }  # fmt: skip
    plain = ours(tmp_path / "a", rollouts=scripted_rollouts(5), **options)
    plain.train()
    probed = ours(tmp_path / "b", rollouts=scripted_rollouts(5), entropy_probe_steps=2, **options)
    probed.train()
    assert torch.equal(weights(probed), weights(plain))
    have = [log["step"] for log in probed.state.log_history if "entropy/change" in log]
    assert have == [2, 4]
    for log in probed.state.log_history:
        if "entropy/change" in log:
            # Gradient descent's step is -lr g: the effective rate is the learning rate itself.
            assert log["entropy/predicted_step"] == pytest.approx(log["entropy/predicted"], rel=2e-3)
            assert log["entropy/change"] != 0


def test_the_measured_change_is_that_of_the_same_tokens(tmp_path):
    """Against a second scoring by hand, before and after a step."""
    trainer = ours(tmp_path, rollouts=scripted_rollouts(5), max_steps=1, entropy_probe_steps=1, fast_path=False)
    compute, kept = type(trainer)._compute_loss, []

    def computing(model, inputs):
        kept.append(inputs)
        return compute(trainer, model, inputs)

    trainer._compute_loss = computing
    before = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}

    def mean_entropy(state):
        trainer.model.load_state_dict(state)
        inputs = kept[0]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        length = inputs["completion_ids"].shape[1]
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1].double()
        log_p = logits.log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)[inputs["completion_mask"].bool()].mean().item()

    expected = mean_entropy(after) - mean_entropy(before)
    assert trainer.state.log_history[0]["entropy/change"] == pytest.approx(expected, rel=1e-3)


def test_a_probe_of_a_negative_number_of_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="entropy_probe_steps is -1"):
        ours(tmp_path, entropy_probe_steps=-1)


def test_times_add_up(tmp_path):
    trainer = ours(tmp_path, rollouts=scripted_rollouts(5), max_steps=2, num_iterations=2)
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["time/update"] > 0 and all(log[f"time/{name}"] >= 0 for name in ("sampling", "scoring", "reward"))
    assert trainer.state.log_history[0]["time/scoring"] > 0, "several updates a batch need the old log-probs"


def test_run_writer_beside_stock_trl(tmp_path):
    trainer = observed(tmp_path / "run", rollouts=scripted_rollouts(5, constant_prompts=(0,)), max_steps=2)
    trainer.add_callback(RunWriter(trainer, samples_per_step=3, tokens_per_step=5))
    trainer.train()

    def read(name):
        return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]

    assert [record["step"] for record in read("metrics.jsonl")] == [1, 2]
    assert all("cov/pos_0.01" in record for record in read("metrics.jsonl"))
    histograms = read("histograms.jsonl")
    assert [record["step"] for record in histograms] == [1, 2]
    assert sum(histograms[1]["c"]) + histograms[1]["idle"] == len(trainer.step_tokens)
    tokens = read("tokens.jsonl")
    assert len(tokens) == 10 and all(record["weight"] == 1 and record["advantage"] != 0 for record in tokens)
    samples = read("samples.jsonl")
    assert len(samples) == 6
    for sample in samples:
        columns = sample["tokens"]
        assert len({len(values) for values in columns.values()}) == 1
        assert "".join(columns["text"]).replace("[EOS]", "") == sample["completion"].replace(" ", "")
    shown = collect([read_run(tmp_path / "run")])
    assert shown.skipped == [] and {"reward", "entropy", "cov/sigma"} <= set(shown.curves)
    run = shown.runs[0]
    assert len(run["histograms"]["frames"]) == 2 and sum(token["count"] for token in run["damped"]) == 10
    assert all(entry["tokens"] for entry in run["completions"])


def written(folder, steps, seed, resume=None, **options):
    trainer = ours(folder, rollouts=scripted_rollouts(seed), max_steps=steps, **options)
    trainer.add_callback(RunWriter(trainer))
    trainer.train(resume_from_checkpoint=resume)


def steps_in(folder, name="metrics.jsonl"):
    return [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]


def test_a_script_that_is_run_again_puts_the_records_of_the_first_run_aside(tmp_path, caplog):
    written(tmp_path / "out", 3, seed=5)
    written(tmp_path / "out", 2, seed=7)
    assert steps_in(tmp_path / "out") == steps_in(tmp_path / "out", "histograms.jsonl") == [1, 2]
    assert steps_in(tmp_path / "out" / "earlier-1") == [1, 2, 3]
    assert "holds the records of another run" in caplog.text


def test_a_script_goes_on_from_a_checkpoint_and_its_records_too(tmp_path):
    """Also where the last record was cut in half; what came after the checkpoint is trained, and recorded, again."""
    out, saving = tmp_path / "out", {"save_strategy": "steps", "save_steps": 2}
    written(out, 3, seed=5, **saving)
    (out / "checkpoint-3").rename(tmp_path / "lost")  # the end of the first run
    for name in ("metrics.jsonl", "histograms.jsonl"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:-30])
    written(out, 4, seed=5, resume=True, **saving)
    for name in ("metrics.jsonl", "histograms.jsonl"):
        assert steps_in(out, name) == [1, 2, 3, 4]
    assert sorted(steps_in(out, "samples.jsonl")) == steps_in(out, "samples.jsonl")


def test_samples_are_of_the_rollouts_and_not_of_an_evaluation_between_two_updates(tmp_path):
    held_out = dataset(4).map(lambda row: {"prompt": [{"role": "user", "content": "EVAL?"}]})
    trainer = ours(
        tmp_path / "out", rollouts=None, max_steps=4, num_iterations=2, eval_dataset=held_out, eval_strategy="steps",
        eval_steps=1, per_device_eval_batch_size=4,
    )  # fmt: skip
    trainer.add_callback(RunWriter(trainer))
    trainer.train()
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {1, 2, 3, 4}
    assert not any("EVAL" in sample["prompt"] for sample in samples)
