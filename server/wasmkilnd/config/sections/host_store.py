"""Where the files are that processes on this host map, how many bytes, who may read them."""

from __future__ import annotations

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    AUTO,
    LIVE,
    FileMode,
    Group,
    SizeOrAuto,
    StoreDirectory,
)


class HostStoreSettings(BaseModel):
    """Where the files are that processes on this host map, how many bytes, who may read them."""

    host_store_dir: StoreDirectory = Field(
        default="",
        description="The directory of the host store: artifacts as files, which processes on this"
        " host map; empty for host_store below the state directory, none for no host store."
        " Daemons with the same directory share it.",
    )
    host_store_bytes: SizeOrAuto = Field(
        default=AUTO,
        description="Bytes on disk that the host store may fill; the least recently used artifacts"
        " go first. auto for 4 GiB, or a tenth of the file system if that is less; 0 switches the"
        " store off. To switch it on or off, restart the daemon.",
        json_schema_extra=LIVE,
    )
    host_store_mode: FileMode = Field(
        default="0640",
        description="The mode of the files in the host store, in octal: who may map them. Folders"
        " get the search bits that fit. Only the daemon's user may write.",
    )
    host_store_group: Group = Field(
        default="",
        description="The group of the files in the host store, by name or number: one that the"
        " daemon's user is in. Empty for the daemon's own group.",
    )
