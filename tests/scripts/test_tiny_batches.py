"""Batches of lessons: the proof of the split survives the way to the trainer, evaluated questions
do not; and the training: its schedule, and that the same command makes the same model. PyTorch is
needed, so this runs with the oracles."""

import shutil

import pytest

torch = pytest.importorskip("torch")
import k2ref  # noqa: E402
from k2ref.loading import EMBEDDED  # noqa: E402
from scripts.tiny import batches, train  # noqa: E402

pytestmark = pytest.mark.oracle


def lessons(asked=()):
    """Return the lessons of a schedule of short steps without trails."""
    found = batches.Lessons(k2ref.load(threads=1).tokenizer, 0, 3, 2000, lambda _: (False, 0))
    found.asked = asked
    return found


def test_the_proof_that_a_loader_hands_on_is_the_proof():
    drawn = lessons()
    loader = torch.utils.data.DataLoader(drawn, batch_size=None, sampler=range(3))
    assert [batch.proof for batch in loader] == [drawn[step].proof for step in range(3)]
    assert all(drawn[step].proof["questions"] > 0 for step in range(3))


def test_a_conversation_with_an_evaluated_question_is_left_out():
    encoder, seen = lessons().encoder, []
    batches.documents(encoder, 3, 0, 2000, False, 0, seen)
    asked = {seen[0].question}
    assert lessons(asked)[0].proof["asked"] == 0
    without = []
    batches.documents(encoder, 3, 0, 2000, False, 0, without, asked)
    assert without and asked.isdisjoint(exchange.question for exchange in without)


def test_the_schedule_is_that_of_the_model_that_comes_with_k2ref():
    """It went by 18,000 steps until step 12,944, and from there by 16,500."""
    args = train.arguments([])
    assert args.steps == 16500
    for step in range(args.steps):
        steps = 18000 if step < 12944 else 16500
        is_long, n_pages = train.plan(step, args)
        assert is_long == (step > 0.3 * steps and step % 7 == 0)
        if is_long:
            assert n_pages == (40 if step < 0.6 * steps else 110 if step < 0.8 * steps else 300)
        rate = min((step + 1) / 60, 1, (steps - step) / (0.45 * steps))
        # Nine roundings of numbers up to 1 / 0.45.
        assert abs(train.schedule(step, args.steps) - rate) < 9 * 2**-53 / 0.45


def test_the_same_command_makes_the_same_model_also_when_it_was_left_off(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "answers", lambda *_: (0.0, 0, 0))  # only for the report

    def trained(name, *options):
        out = tmp_path / name
        if not out.exists():  # the vocabulary takes long to make, and is that of the embedded model
            out.mkdir()
            for file in ("tiktoken.model", "tokenizer_config.json"):
                shutil.copy(EMBEDDED / file, out)
        train.main(["--out", str(out), "--work", f"{out}.pt", "--device", "cpu",
                         "--steps", "3", "--tokens", "1000", "--long", "0", *options])
        return {path.name: path.read_bytes() for path in out.iterdir()}

    whole = trained("whole")
    assert trained("parts", "--seconds", "0").keys() < whole.keys()  # no weights yet
    assert trained("parts", "--workers", "2") == whole
