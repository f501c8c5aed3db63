"""What a build runs, what it says meanwhile, and how it fails.

Part of scripts/build-runtimes. Commands get a clean environment of their own; only the clients of registries (npm, pip) see the
caller's, because it is there that a host says which registry it uses.
"""

import os, shutil, subprocess, sys, time

CLEAN_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class Trouble(Exception):
    """A plain sentence with its cure."""


def run(line, doing, step=None, cwd=None, inherit_env=False, **env):
    """Runs a command and returns its output; `step` shows meanwhile that time goes by."""
    env = dict(os.environ if inherit_env else CLEAN_ENV, **env)
    began, words = time.monotonic(), [str(word) for word in line]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=cwd, env=env) as process:
        while True:
            if step:
                step(f"{doing}, {time.monotonic() - began:.0f} s", 0)
            try:
                said, complained = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                continue
    if process.returncode:
        words = (complained + said).decode(errors="replace").strip()
        raise Trouble(f"Could not {doing}: `{line[0]}` ended with {process.returncode}. It said:\n{words}")
    return said.decode(errors="replace")


def need(command, package, step):
    if not shutil.which(command):
        apt_install(package, step)


def apt_install(package, step=None):
    if not (step and step.on_terminal):
        print(f"Installing {package} ...", file=sys.stderr, flush=True)
    debian = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], "update the package lists (is the network there?)", step, **debian)
    run(["apt-get", "install", "-y", "-qq", "-o", "DPkg::Lock::Timeout=120", "--no-install-recommends", package], f"install {package}", step, **debian)


class Progress:
    """A bar on a terminal; elsewhere one plain line for each runtime."""

    def __init__(self, quiet):
        self.quiet, self.on_terminal = quiet, sys.stderr.isatty() and not quiet

    def of(self, name):
        def step(doing, share=1):
            if self.on_terminal:
                full = int(share * 24)
                print(f"\r\033[K{name:<16} [{'#' * full}{'.' * (24 - full)}] {doing}", end="", file=sys.stderr, flush=True)

        step.on_terminal = self.on_terminal
        return step

    def done(self, name, note):
        if self.on_terminal:
            print("\r\033[K", end="", file=sys.stderr)
        elif not self.quiet:
            print(f"{name}: {note}", file=sys.stderr, flush=True)

    def say(self, text):
        print(text, file=sys.stderr)
