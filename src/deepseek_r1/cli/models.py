"""The verbs `models list`, `models inspect` and `models pull`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from deepseek_r1.cli.terminal import Progress, size, table, visible
from deepseek_r1.config.inspect import InspectConfig, ListConfig
from deepseek_r1.config.pull import PullConfig
from deepseek_r1.core.errors import ConfigError, UnsupportedError


def list_models(config: ListConfig) -> int:
    """Print the models that can be served without fetching anything."""
    from deepseek_r1.operate.catalogue import local_models

    models = local_models()
    if config.json:
        fields = [{"name": m.name, "format": m.format, "bytes": m.nbytes, "path": str(m.path)} for m in models]
        print(json.dumps(fields, indent=2))
    elif models:
        rows = [(m.name, m.format, _megabytes(m.nbytes), str(m.path)) for m in models]
        print(table(("model", "format", "size", "path"), rows, text=("format", "path")))
    else:
        print("There is no model on this machine. `deepseek-r1 doctor` says how to get the default one.")
    return 0


def inspect_model(config: InspectConfig) -> int:
    """Print what one model is made of, and draw it."""
    from deepseek_r1.models.locate import served_name
    from deepseek_r1.operate.catalogue import describe_model
    from deepseek_r1.operate.picture import svg

    model = describe_model(config.model)
    if config.svg is not None:
        if model["architecture"] is None:
            raise UnsupportedError(f"--svg: {model['unsupported']}", remedy="only what is built here can be drawn")
        file = Path(config.svg).expanduser()
        try:
            file.write_text(svg(model["architecture"], served_name(config.model)), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"--svg {file}: {error.strerror or error}",
                remedy="name a file in a folder that can be written, with room",
            ) from None
    print(json.dumps(model, indent=2) if config.json else visible(_page(model)))
    return 0


def pull_model(config: PullConfig) -> int:
    """Fetch a model from the hub, and print where it lies and how to serve it."""
    from deepseek_r1.models.pull import pull

    progress = Progress()
    try:
        model = pull(config.repo or "", revision=config.revision, file=config.file, report=progress.transfer)
    finally:
        progress.end()
    if config.json:
        print(json.dumps({**dataclasses.asdict(model), "path": str(model.path)}, indent=2))
        return 0
    total = size(sum(file.size for file in model.files))
    fields = {
        "model": model.repo,
        "commit": f"{model.commit} ({model.revision})",
        "path": str(model.path),
        "files": f"{len(model.files)}, {total}; {len(model.fetched)} fetched and verified now",
        "architecture": model.architecture or "not named",
    }
    if model.unsupported is None:
        fields["architecture"] += ", supported"
        fields["serve it with"] = f"deepseek-r1 serve {shlex.quote(model.serve)}"
    else:
        fields["not supported"] = model.unsupported
    print(pairs(fields))
    return 0


def _page(model: dict[str, Any]) -> str:
    from deepseek_r1.operate.picture import draw

    head = {
        "model": model["model"],
        "path": model["path"],
        "format": model["format"],
        "family": model["family"] or "not named",
        "parameters": f"{model['parameters']:,}",
        "size": _megabytes(model["bytes"]) if model["tensors"] else "no weights here",
        "chat template": "yes" if model["chat_template"] else "no",
    }
    if model["unsupported"]:
        head["not supported"] = model["unsupported"]
    parts = [pairs(head)]
    if model["config"]:
        parts.append("config\n" + pairs({f"  {name}": _short(value) for name, value in model["config"].items()}))
    if model["architecture"]:
        parts += [_architecture(model["architecture"]), draw(model["architecture"])]
    rows = [
        (name, f"{entry['tensors']:,}", f"{entry['parameters']:,}", _megabytes(entry["bytes"]))
        for name, entry in model["tensors"].items()
    ]
    if rows:
        parts.append(table(("stored as", "tensors", "parameters", "size"), rows))
    return "\n\n".join(parts)


def _architecture(architecture: dict[str, Any]) -> str:
    """Parameters by part: of all layers of a kind together, then of the parts of one of them."""
    rows = []
    for part in architecture["parts"]:
        if part["kind"] == "prediction":
            continue
        rows.append((part["name"], f"{part['total']:,}", f"{part['active']:,}"))
        for layer in part.get("layers", ()):
            one = f"  one {layer['name']}"
            rows.append((one, f"{layer['total']:,}", f"{layer['active']:,}"))
            rows += [(f"    {p['name']}", f"{p['total']:,}", f"{p['active']:,}") for p in layer["parts"]]
    counts = architecture["parameters"]
    rows.append(("in all", f"{counts['total']:,}", f"{counts['active']:,}"))
    if counts["prediction_modules"]:
        rows.append(("prediction modules besides", f"{counts['prediction_modules']:,}", ""))
    return table(("part", "parameters", "active"), rows)


def pairs(fields: dict[str, str]) -> str:
    """Names and values in two columns."""
    width = max(map(len, fields))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in fields.items())


def _short(value: Any) -> str:
    """A setting on one line; a list of equal entries (one per layer) as "30 x None"."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={_short(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, tuple | list) and value and isinstance(value[0], dict):
        return "; ".join(map(_short, value))
    if isinstance(value, tuple | list) and len(value) > 4:
        return f"{len(value)} x {value[0]}" if len(set(value)) == 1 else f"{len(value)} values, from {value[0]}"
    return str(value)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
