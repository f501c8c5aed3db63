"""The house: runtimes_dir, where finished trees are installed, and the cache of source files.

Part of scripts/build-runtimes. Who makes a directory here also removes it. Everything is moved into place only when whole.
"""

import contextlib, fcntl, hashlib, json, os, pwd, re, shutil, sys, tempfile, time
from pathlib import Path

from commands import Trouble
from tree import digest, hash_file

# R: owns every tree on the host and is "root" inside; nobody runs as it. Just above what systemd hands out.
OWNER = 1879048192
# Trees that no recipe names any more stay so long, for whoever goes back to an older checkout.
KEPT_DAYS = 7


class House:
    def __init__(self, runtimes_dir, cache_dir):
        self.dir, self.cache = runtimes_dir, cache_dir
        for directory in (self.dir / "trees", self.dir / "listings", self.dir / "sets", self.dir / ".built", self.cache):
            directory.mkdir(parents=True, exist_ok=True)
        recorded = self.dir / "owner"
        self.owner = int(recorded.read_text()) if recorded.exists() else OWNER
        with contextlib.suppress(KeyError):
            taken = pwd.getpwuid(self.owner).pw_name
            raise Trouble(f"User id {self.owner} must own the trees and nothing else, but here it is {taken}'s: write a free one to {recorded}.")
        write(recorded, f"{self.owner}\n")

    @contextlib.contextmanager
    def locked(self):
        with open(self.dir / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another build-runtimes works in {self.dir}; waiting for it.", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self.dir.glob(".work-*"):  # of a build that was killed
                shutil.rmtree(left)
            yield

    @contextlib.contextmanager
    def workshop(self):
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=self.dir))
        work.chmod(0o755)  # apt fetches as a user of its own
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    # ---- The cache ----

    def keep(self, file):
        sha = hash_file(file)
        if not self.cached(sha):
            shutil.copyfile(file, self.cache / f".{sha}.new")
            os.replace(self.cache / f".{sha}.new", self.cache / sha)
        return sha

    def cached(self, sha):
        """The cached file, if it still is what its name says."""
        path = self.cache / sha
        return path if path.is_file() and hash_file(path) == sha else None

    # ---- Trees, sets, recipes ----

    def tree(self, name):
        return self.dir / "trees" / name

    def remembered(self, name):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads((self.dir / ".built" / name).read_text())
        return None

    def remember(self, name, built):
        write(self.dir / ".built" / name, json.dumps(built) + "\n")

    def is_whole(self, tree, step):
        if tree is None:
            return True
        step("check, and read into the page cache")
        path = self.tree(tree)
        return path.is_dir() and path.stat().st_uid == self.owner and self.listing(tree).exists() and digest(path)[0] == tree

    def listing(self, tree):
        """What the tree's name is the SHA-256 of: where a tree was changed, it tells which file."""
        return self.dir / "listings" / tree

    def move_in(self, root, tree, listing):
        self.listing(tree).write_bytes(listing)
        place = self.tree(tree)
        if place.exists() and digest(place)[0] != tree:
            # Damaged. A container may still run from it, so it goes aside first, in one step.
            os.rename(place, root.parent / "damaged")
        if not place.exists():
            os.rename(root, place)

    def install_set(self, layers):
        text = "".join(f"{tree}\n" for tree in layers)
        name = hashlib.sha256(text.encode()).hexdigest()
        write(self.dir / "sets" / name, text)
        return name

    def install_recipe(self, name, text):
        write(self.dir / f"{name}.toml", text)

    # ---- What is old ----

    def prune(self, at_once):
        """Removes trees and sets that no installed recipe needs, but none that a running kilnd has mounted: its launchers hold a
        shared lock on each tree that they use. Returns how many trees went, and how many had to stay."""
        sets = set()
        for recipe in self.dir.glob("*.toml"):
            sets.update(re.findall(r'^tree = "([0-9a-f]{64})"$', recipe.read_text(), re.MULTILINE))
        texts = [path.read_text() for path in (self.dir / "sets").iterdir() if path.name in sets]
        needed = {tree for text in texts for tree in text.split()}
        # A build of one runtime alone must not cost the next one its base.
        for built in (self.dir / ".built").iterdir():
            needed.update(tree for tree in (self.remembered(built.name) or {}).get("layers", []))
        gone, held = 0, 0
        for tree in sorted((self.dir / "trees").iterdir()):
            # ctime: a tree's other times are set to the same for all; renaming it into place was its last change.
            young = time.time() - tree.stat().st_ctime < KEPT_DAYS * 86400
            if tree.name in needed or (young and not at_once):
                continue
            with self.workshop() as work:
                removed = take_aside(tree, work / "old")
            if removed:
                self.listing(tree.name).unlink(missing_ok=True)
            gone, held = gone + removed, held + (not removed)
        for path in (self.dir / "sets").iterdir():
            if path.name not in sets and not all(self.tree(tree).exists() for tree in path.read_text().split()):
                path.unlink()
        return gone, held

    def prune_cache(self, needed):
        """Removes source files that no lock pins."""
        old = [path for path in self.cache.iterdir() if path.name not in needed]
        for path in old:
            path.unlink()
        return len(old)


def take_aside(tree, place):
    """Whether nobody used it. Under its lock it gets another name, so nobody can begin to use it either."""
    directory = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(tree, place)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(directory)


def write(path, text):
    """Whole or not at all; a reader never sees half."""
    if path.exists() and path.read_text() == text:
        return
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
