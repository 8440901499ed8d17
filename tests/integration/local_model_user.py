"""A process that uses a local model until its stdin ends; says the engine's pid when it is there."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from rolecall.models.local import LocalModel
from rolecall.settings import Settings


async def main(state_dir: Path, cache: Path) -> None:
    model = LocalModel("smollm2", Settings(local_slots=1, local_threads=1), state_dir, cache)
    await model.warm()
    record = json.loads((state_dir / "models" / "smollm2" / "server.json").read_text())
    print(record["pid"], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await model.aclose()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
