"""main.py SOCKET PROBE.zip MODULE…: the checks of these modules, on the instance behind the socket."""

import importlib
import sys

import checks

if __name__ == "__main__":
    path, probe, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    with open(probe, "rb") as file:
        kiln = checks.Kiln(path, file.read())
    checks.run(modules, kiln)
