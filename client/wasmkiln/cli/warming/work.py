"""Ask what is missing, compile it, and upload what the daemon lacks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from wasmkiln._requests import MAX_MODULE_BYTES
from wasmkiln.cli.batch import Done, attempt
from wasmkiln.errors import (
    ConnectionFailed,
    EngineRemoved,
    EngineUnknown,
    ModuleNotLoaded,
    ModuleTooLarge,
    SettingUnknown,
    TargetUnsupported,
    WasmkilnError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wasmkiln.cli.warming.module import Module
    from wasmkiln.cli.warming.variants import Variant
    from wasmkiln.client import Client
    from wasmkiln.v1.admin_service_pb2 import PinResponse
    from wasmkiln.v1.types_pb2 import ArtifactHeader


@dataclass(frozen=True)
class Wanted:
    """An artifact that the daemon should hold."""

    module: Module
    variant: Variant

    @property
    def name(self) -> str:
        """Its name in messages."""
        label = self.variant.label
        return f"{self.module.name} [{label}]" if label else self.module.name


def each_once(modules: Iterable[Module]) -> list[Module]:
    """Return the modules without those whose bytes came before; one that can be read counts."""
    found: dict[str, Module] = {}
    for module in modules:
        before = found.setdefault(module.sha256, module)
        if before.read is None:
            before.read, before.size_bytes = module.read, module.size_bytes
    return list(found.values())


def missing(
    client: Client, modules: Sequence[Module], variants: Sequence[Variant]
) -> tuple[list[Wanted], list[Done[ArtifactHeader]]]:
    """Return what no tier holds, and a failure for each variant that the daemon does not have.

    Variants follow each other, not modules: so that threads upload different modules.
    """
    wanted: list[Wanted] = []
    refused: list[Done[ArtifactHeader]] = []
    for variant in variants:
        try:
            cold = client.find_missing(variant.key(module.sha256) for module in modules)
        except (EngineUnknown, EngineRemoved, TargetUnsupported, SettingUnknown) as error:
            refused.append(Done(variant.label or "the default engine", error=error))
            continue
        digests = {key.module_sha256 for key in cold}
        wanted += [Wanted(module, variant) for module in modules if module.sha256 in digests]
    return wanted, refused


class Warmer:
    """Compiles what is wanted, with many threads at once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._uploaded: set[str] = set()
        self._is_gone = False

    @property
    def uploaded(self) -> int:
        """How many modules were uploaded."""
        return len(self._uploaded)

    def warm(self, one: Wanted) -> Done[ArtifactHeader]:
        """Compile one; without a try when no daemon answered another one."""
        if self._is_gone:
            return Done(one.name)
        done = attempt(one.name, lambda _: self._compiled(one))
        if isinstance(done.error, ConnectionFailed):
            self._is_gone = True
        return done

    def pin(self, module: Module) -> Done[PinResponse]:
        """Pin a module, which the daemon has by now."""
        return attempt(module.name, lambda _: self._client.pin(module.sha256))

    def _compiled(self, one: Wanted) -> ArtifactHeader:
        module = one.module
        try:
            return self._ask(one, module.sha256)
        except ModuleNotLoaded:
            if module.read is None:
                raise
        with module.uploading:
            if module.sha256 not in self._uploaded:
                return self._upload(one)
        try:
            return self._ask(one, module.sha256)
        except ModuleNotLoaded:  # evicted since another thread uploaded it
            return self._upload(one)

    def _upload(self, one: Wanted) -> ArtifactHeader:
        module = one.module
        limit = self._limit_bytes
        if module.read is None or (module.size_bytes or 0) > limit:
            raise ModuleTooLarge(
                f"it has {module.size_bytes:,} bytes, and the daemon takes {limit:,} at most",
                metadata={"size_bytes": str(module.size_bytes), "limit_bytes": str(limit)},
            )
        header = self._ask(one, module.read())
        self._uploaded.add(module.sha256)
        return header

    def _ask(self, one: Wanted, source: str | bytes) -> ArtifactHeader:
        return self._client.compile(
            source,
            engine=one.variant.engine,
            target=one.variant.target,
            cpu=one.variant.cpu,
            settings=one.variant.settings,
            omit_artifact=True,
            background=True,
        ).header

    @cached_property
    def _limit_bytes(self) -> int:
        """The largest module that the daemon takes, so that no larger one is downloaded."""
        try:
            return self._client.capabilities().limits.module_bytes or MAX_MODULE_BYTES
        except WasmkilnError:  # the upload says the same
            return MAX_MODULE_BYTES
