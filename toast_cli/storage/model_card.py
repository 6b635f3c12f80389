"""The README.md of an adapter: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from typing import Any

from toast_cli.storage.adapter import AdapterConfig


def format_adapter_card(config: AdapterConfig, results: dict[str, Any]) -> str:
    """Markdown with method, backbone, data, numbers and the command that evaluates the adapter."""
    recipe = config.recipe
    lines = [
        f"# {recipe['method']['name']} adapter for {recipe['backbone']['name']} on {recipe['dataset']['name']}",
        "",
        f"- Trained parameters: {config.trained_parameters:,}",
        f"- Backbone fingerprint: `{config.backbone_fingerprint[:16]}…`",
        *([f"- Classes: {len(config.classes)}"] if config.classes else []),
        f"- Seed: {recipe['seed']}; epoch {results['selected_epoch']} was kept"
        + (", chosen on the validation split" if results["validation"] else ", the last one"),
    ]
    for split in ("validation", "test"):
        if results[split]:
            metrics = results[split]
            numbers = (f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
            lines.append(f"- {split.capitalize()}: {', '.join(numbers)}")
    lines += ["", "Evaluate it again:", "", "```", "toast eval --run PATH_OF_THIS_FOLDER", "```", ""]
    return "\n".join(lines)
