"""--engine, --target, --cpu and --set, each as often as wanted: their product."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wasmkiln.cli.options import name_and_value
from wasmkiln.v1.types_pb2 import ArtifactKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    F = TypeVar("F", bound=Callable[..., Any])

# More are a mistake: each is one more artifact of every module.
_MOST = 1_000


@dataclass(frozen=True)
class Variant:
    """What one artifact of each module is made for. Empty where the daemon chooses."""

    engine: str = ""
    target: str = ""
    cpu: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What of it was said, for messages; "" if nothing was."""
        settings = (f"{name}={value}" for name, value in self.settings.items())
        return " ".join(filter(None, (self.engine, self.target, self.cpu, *settings)))

    def key(self, module_sha256: str) -> ArtifactKey:
        """Return the key of a module's artifact."""
        return ArtifactKey(
            module_sha256=module_sha256,
            engine=self.engine,
            target=self.target,
            cpu=self.cpu,
            settings=self.settings,
        )


def every_variant(
    engines: Sequence[str],
    targets: Sequence[str],
    cpus: Sequence[str],
    settings: Mapping[str, Sequence[str]],
) -> list[Variant]:
    """Return the product, each once. Raise click.UsageError for more than a thousand."""
    choices = [list(dict.fromkeys(each)) or [""] for each in (engines, targets, cpus)]
    values = [list(dict.fromkeys(each)) for each in settings.values()]
    count = 1
    for each in (*choices, *values):
        count *= len(each)
    if count > _MOST:
        raise click.UsageError(f"these options ask for {count:,} variants of each module")
    return [
        Variant(engine, target, cpu, dict(zip(settings, chosen, strict=True)))
        for engine, target, cpu in product(*choices)
        for chosen in product(*values)
    ]


def _alternatives(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, list[str]]:
    settings: dict[str, list[str]] = {}
    for name, value in map(name_and_value, values):
        settings.setdefault(name, []).append(value)
    return settings


def variant_options(command: F) -> F:
    """Add the options, each of which may be repeated."""
    for option in (
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            callback=_alternatives,
            help="A setting; several values of one name are alternatives.",
        ),
        click.option(
            "--cpu", "cpus", multiple=True, metavar="LEVEL", help="CPU level; may be repeated."
        ),
        click.option(
            "--target",
            "targets",
            multiple=True,
            metavar="TRIPLE",
            help="Target triple; may be repeated.",
        ),
        click.option(
            "--engine",
            "engines",
            multiple=True,
            metavar="ENGINE",
            help="Engine, by name or id; may be repeated.",
        ),
    ):
        command = option(command)
    return command
