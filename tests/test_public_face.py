"""The public names, what importing them costs, and the order of the house."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import antiphon

SOURCE = Path(antiphon.__file__).parent
ORDER = [  # reading order is data flow: imports only point up this list
    ("errors", "progress", "options", "pages"),
    ("remote",),
    ("addresses",),
    ("audio", "tags", "waveform"),
    ("windows",),
    ("features",),
    ("augment",),
    ("text",),
    ("captions",),
    ("data.pairs",),
    ("data.layouts",),
    ("data.formats",),
    ("data.folders",),
    ("data.manifest", "data.listing"),
    ("data.shards",),
    ("data.loaders",),
    ("data.fingerprints", "data.doctor_words"),
    ("data.doctor_sound",),
    ("data.doctor",),
    ("data.doctor_report",),
    ("data.sets",),
    ("fusion",),
    ("encoders.contract", "encoders.weights", "encoders.hub", "encoders.lora"),
    ("encoders.text.tokenizers",),
    ("encoders.text.huggingface",),
    ("encoders.audio.efficientat",),
    ("encoders",),
    ("heads",),
    ("checkpoints.contract",),
    ("checkpoints.transformers_clap",),
    ("checkpoints.audioset",),
    ("checkpoints.msclap",),
    ("checkpoints",),
    ("checkpoints.reading",),
    ("encoding",),
    ("model",),
    ("export",),
    ("losses", "ema"),
    ("objectives.contract",),
    ("objectives",),
    ("metrics.chunks", "metrics.gap"),
    ("metrics.ranking",),
    ("metrics.bootstrap", "metrics.streaming"),
    ("metrics",),
    ("training.optim", "training.checkpoint", "training.tracking", "training.health", "training.parallel"),
    ("training.folders",),
    ("training.gradient_cache",),
    ("training",),
    ("evaluation.results", "evaluation.hearing", "evaluation.prompts", "evaluation.judgements", "evaluation.suites"),
    ("evaluation.classes",),
    ("evaluation.parts",),
    ("evaluation.small_heads",),
    ("evaluation.retrieval",),
    ("evaluation",),
    ("embed",),
    ("engines",),
    ("library.results", "library.ranking"),
    ("library.card", "library.table", "library.query"),
    ("library.view", "library.writing"),
    ("library.index", "library.exports", "library.positions"),
    ("library.parquet", "library.library"),
    ("library",),
    ("serve",),
    ("configs",),
    ("evaluate",),
    ("train", "pretrain_text", "caption", "finetune"),
    ("demo",),
    ("cli.printing",),
    ("cli.models", "cli.data", "cli.libraries"),
    ("cli",),
    ("cli.__main__",),
]
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
)
PACKAGES = {".".join(path.parent.relative_to(SOURCE).parts) for path in SOURCE.rglob("__init__.py")}


def level(module: str) -> int:
    fits = [
        (len(name), index)
        for index, names in enumerate(ORDER)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    assert fits, f"{module} has no place in the house: add it to ORDER"
    return max(fits)[1]


def imports_of(module: str) -> set[str]:
    """Modules of this package that `module` imports, at its top or inside a function."""
    found = set()
    tree = ast.parse((SOURCE / (module.replace(".", "/") + ".py")).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "antiphon":
            base = node.module.removeprefix("antiphon").lstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".lstrip(".")
                found.add(full if full in MODULES or full in PACKAGES else base)
    return found - {""}


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_point_up_the_house(module):
    for other in imports_of(module):
        assert level(other) <= level(module), f"{module} imports {other}, which stands below it"


def test_the_public_face_is_sorted_and_each_name_is_there():
    assert antiphon.__all__ == sorted(antiphon.__all__)
    for name in antiphon.__all__:
        assert getattr(antiphon, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        _ = antiphon.lode


@pytest.mark.parametrize("statement", ["import antiphon", "import antiphon.cli"])
def test_importing_brings_nothing_heavy(statement):
    heavy = "{'torch', 'numpy', 'transformers', 'lancedb', 'pyarrow', 'hydra', 'matplotlib', 'sklearn'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_config_objects_stop_at_the_doors():
    doors = {"train", "evaluate", "cli"}
    for module in set(MODULES) - doors:
        text = (SOURCE / (module.replace(".", "/") + ".py")).read_text()
        assert "DictConfig" not in text, f"{module} knows DictConfig"
        assert "import omegaconf" not in text, f"{module} imports omegaconf"
        assert "from omegaconf" not in text, f"{module} imports omegaconf"
