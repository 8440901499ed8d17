"""What a script reports: a line of JSON for each feature that it tried."""

import asyncio
import inspect
import json
import os
import sys

URL = os.environ["ROLECALL_URL"]
KEY = "none-is-needed"


def feature(name, run):
    """Try one feature; it works if ``run`` raises nothing and returns what is true."""
    try:
        found = run()
        if inspect.isawaitable(found):

            async def awaited():
                return await found

            found = asyncio.run(awaited())
        told = {"feature": name, "works": bool(found), "note": "" if found else f"returned {found!r}"}
    except Exception as error:
        told = {"feature": name, "works": False, "note": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(f"\n{json.dumps(told)}\n")
    sys.stdout.flush()
