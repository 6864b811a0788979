"""Write the names of the daemon's settings into the schema of the Helm chart's values.

So `helm install` refuses a setting that the daemon does not know, before it starts. `make protos`
runs this.
"""

from __future__ import annotations

import json
from pathlib import Path

from wasmkilnd.settings import Settings

SCHEMA = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "wasmkiln" / "values.schema.json"


def main() -> None:
    """Write them."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["propertyNames"] = {"enum": sorted(Settings.model_fields)}
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main()
