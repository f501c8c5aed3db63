"""Sources: exact files, pinned in a lock file, from the cache or else from the mirror through its ordinary client.

Part of scripts/build-runtimes. Debian's packages are resolved and signature-checked by apt under mmdebstrap, npm's come through
npm, Python's wheels through pip. Nothing of what is fetched is run here.
"""

import glob, os
from pathlib import Path

from commands import Trouble, apt_install, need, run


class Lock:
    """One line for each source file, `RECIPE KIND PACKAGE VERSION SHA256`. Kinds: deb, npm, pip."""

    def __init__(self, path):
        self.path, self.changes = path, []
        text = path.read_text() if path.exists() else ""
        self.rows = [tuple(line.split()) for line in text.splitlines() if line and not line.startswith("#")]

    def lines(self, recipe):
        return [" ".join(row) for row in self.rows if row[0] == recipe]

    def sources(self, recipe, kind):
        return sorted(row[2:] for row in self.rows if row[:2] == (recipe, kind))

    def pinned(self, recipe, kind, package, version):
        return next((sha for name, at, sha in self.sources(recipe, kind) if (name, at) == (package, version)), None)

    def replace(self, recipe, kind, sources):
        old = {name: (version, sha) for name, version, sha in self.sources(recipe, kind)}
        new = {name: (version, sha) for name, version, sha in sources}
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                was, now = old.get(name, ("absent",))[0], new.get(name, ("absent",))[0]
                self.changes.append(f"{recipe}: {name} was {was}, is {now}" + (" (another file)" if was == now else ""))
        self.rows = sorted([row for row in self.rows if row[:2] != (recipe, kind)] + [(recipe, kind, *source) for source in sources])

    def finish(self, progress):
        if not self.changes:
            return
        new = self.path.with_name("lock.new")
        head = "# Every source file of these root file systems, pinned. Written by scripts/build-runtimes as lock.new.\n"
        new.write_text(head + "".join(" ".join(row) + "\n" for row in self.rows))
        # Not root's, in somebody's checkout.
        owner = self.path.parent.stat()
        os.chown(new, owner.st_uid, owner.st_gid)
        progress.say(f"The mirrors do not have what {self.path} pins; built from their newest. {len(self.changes)} differences:")
        for change in self.changes:
            progress.say(f"  {change}")
        progress.say(f"Went on. To pin what was used: mv {new} {self.path}")


def fetch_debs(recipe, below, house, lock, work, step):
    """The packages that the recipe names and what they need, without those that the tree below has already."""
    if not recipe.packages:
        return []
    pinned = lock.sources(recipe.name, "deb")
    if not pinned or not all(house.cached(sha) for _, _, sha in pinned):
        newest = [source for source in fetch_newest_debs(recipe, house, work, step) if source[0] not in below]
        if newest != pinned:
            lock.replace(recipe.name, "deb", newest)
        pinned = newest
    return [house.cached(sha) for name, _, sha in pinned if name not in recipe.without]


def fetch_newest_debs(recipe, house, work, step):
    """What the mirror has now; nothing is kept but the files."""
    need("mmdebstrap", "mmdebstrap", step)
    if not glob.glob("/usr/share/keyrings/debian-archive-keyring*"):
        apt_install("debian-archive-keyring", step)
    debs = work / "debs"
    debs.mkdir()
    # The extract hook is the last moment at which the files exist; cleanup of apt's cache comes after it.
    line = ["mmdebstrap", "--quiet", "--variant=extract", "--format=null", "--architectures=amd64", "--skip=download/empty,cleanup/apt"]
    line += [f"--include={','.join(recipe.packages)}", f"--extract-hook=cp \"$1\"/var/cache/apt/archives/*.deb '{debs}'"]
    what = recipe.packages[0] if len(recipe.packages) == 1 else f"{len(recipe.packages)} packages"
    run([*line, recipe.suite, "/dev/null", *host_mirror()], f"fetch {what} and what they need (is the network there?)", step, TMPDIR=str(work))
    found = []
    for deb in debs.iterdir():
        name, version = run(["dpkg-deb", "--show", "--showformat=${Package} ${Version}", deb], f"read {deb.name}").split()
        found.append((name, version, house.keep(deb)))
    return sorted(found)


def host_mirror():
    """The Debian mirror that the host's own apt is set to; on another distribution none, then mmdebstrap knows one."""
    listed = run(["apt-get", "indextargets", "--format", "$(ORIGIN)/$(LABEL) $(REPO_URI)", "Created-By: Packages"], "ask apt for its mirror")
    found = [line.split()[1] for line in listed.splitlines() if line.startswith("Debian/Debian ")]
    return found[:1]


def fetch_npm(recipe, house, lock, work, step):
    if not recipe.npm:
        return None
    package, version = recipe.npm["package"], recipe.npm["version"]
    wanted = lock.pinned(recipe.name, "npm", package, version)
    if wanted and house.cached(wanted):
        return house.cached(wanted)
    need("npm", "npm", step)
    run(["npm", "pack", "--silent", f"{package}@{version}"], f"fetch {package}@{version} from npm (is the network there?)", step, cwd=work,
        inherit_env=True, npm_config_cache=str(work / "npm-cache"), npm_config_update_notifier="false")
    found = house.keep(next(work.glob("*.tgz")))
    check_published("npm", package, version, wanted, found)
    if not wanted:
        lock.replace(recipe.name, "npm", [(package, version, found)])
    return house.cached(found)


def fetch_wheels(recipe, house, lock, work, step):
    """Each wheel that the recipe names, in its order; what they need is named there too, so pip resolves nothing."""
    if not recipe.pip:
        return []
    wheels, used = [], []
    for package, version in recipe.pip["packages"].items():
        wanted = lock.pinned(recipe.name, "pip", package, version)
        found = wanted if wanted and house.cached(wanted) else fetch_wheel(recipe, package, version, wanted, house, work, step)
        used.append((package, version, found))
        wheels.append(house.cached(found))
    if sorted(used) != lock.sources(recipe.name, "pip"):
        lock.replace(recipe.name, "pip", used)
    return wheels


def fetch_wheel(recipe, package, version, wanted, house, work, step):
    need_pip(step)
    python = recipe.pip["python"]
    into = work / "wheels" / package
    into.mkdir(parents=True)
    # A release has many wheels, and which is picked depends on pip's age: the pinned one, where there is one.
    requirements = work / f"{package}.txt"
    requirements.write_text(f"{package}=={version}" + (f" --hash=sha256:{wanted}" if wanted else "") + "\n")
    line = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check"]
    line += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python.replace('.', '')}", "--platform", "manylinux2014_x86_64"]
    run([*line, "--dest", into, "--requirement", requirements], f"fetch {package} {version} from PyPI (is the network there?)", step, inherit_env=True)
    found = house.keep(next(into.glob("*.whl")))
    check_published("PyPI", package, version, wanted, found)
    return found


# The system's own, whatever the caller's PATH has first.
PYTHON = "/usr/bin/python3"


def need_pip(step):
    try:
        run([PYTHON, "-m", "pip", "--version"], "ask for pip")
    except Trouble:
        apt_install("python3-pip", step)


def check_published(registry, package, version, wanted, found):
    """A published version never changes; a mirror that serves something else is wrong or hostile."""
    if wanted and found != wanted:
        raise Trouble(f"{registry}'s {package} {version} is not the file that the lock pins (it has SHA-256 {found}): check which registry this host is set to.")
