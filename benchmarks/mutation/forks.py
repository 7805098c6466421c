"""What a forked child found out: it may import and change what its parent must not."""

import json
import os
import traceback
from collections.abc import Callable
from typing import Any


def from_child(make: Callable[[], Any], failed: str) -> Any:
    """`make()` of a forked child, through JSON. RuntimeError `failed` where it raised, its traceback on stderr."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            with os.fdopen(write, "w") as told:
                json.dump(make(), told)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(failed)
    return json.loads(text)
