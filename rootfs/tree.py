"""A tree: unpacked, arranged as its recipe says, made independent of the host, and named by its content.

Part of scripts/build-runtimes, which decides what goes in. Nothing here fetches. No package's scripts are run; the two programs of a
tree's own that are (ldconfig, the interpreter that compiles its library) see no host, no network and no other process.
"""

import glob, hashlib, os, shlex, shutil, stat, subprocess, tarfile, zipfile
from pathlib import Path

from commands import CLEAN_ENV, Trouble, run

# A time that every archive format can hold.
TREE_TIME = 946684800


def unpack_debs(debs, root, step):
    if not debs:
        return
    # First of all the links of the merged /usr, or a package's own /lib would hide them.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    for number, deb in enumerate(debs):
        step(f"unpack {number + 1} of {len(debs)} packages", number / len(debs))
        feed = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, env=CLEAN_ENV)
        tar = subprocess.run(["tar", "-x", "-p", "--keep-directory-symlink", "-C", root], stdin=feed.stdout, env=CLEAN_ENV)
        if tar.returncode or feed.wait():
            raise Trouble(f"Unpacking {deb} failed; it may be damaged: delete it and run again.")


def unpack_npm(archive, take, root):
    with tarfile.open(archive) as package:
        for source, place in take.items():
            member = package.getmember(f"package/{source}")
            with open(inside(root, place), "wb") as file:
                shutil.copyfileobj(package.extractfile(member), file)
            os.chmod(inside(root, place), member.mode)


def unpack_wheel(wheel, into, root):
    """As pip would for a pure or platform library; a wheel that wants more is refused, not half installed."""
    with zipfile.ZipFile(wheel) as package:
        for member in package.infolist():
            if ".data/" in member.filename:
                raise Trouble(f"{wheel} has files for other places ({member.filename}), which recipes do not know.")
            if not member.is_dir():
                place = inside(root, f"{into}/{member.filename}")
                with package.open(member) as source, open(place, "wb") as file:
                    shutil.copyfileobj(source, file)
                os.chmod(place, 0o755 if member.external_attr >> 16 & 0o111 else 0o644)


def arrange(recipe, root):
    for place, pattern in recipe.join.items():
        parts = [path.read_bytes().rstrip(b"\n") + b"\n" for path in matching(root, pattern)]
        if not parts:
            raise Trouble(f"rootfs/{recipe.name}/recipe.toml joins {pattern}, but the packages have no such file any more.")
        inside(root, place).write_bytes(b"".join(parts))
    for source, place in recipe.move.items():
        os.rename(inside(root, source), inside(root, place))
    remove_all(root, recipe.remove)
    for directory, kept in recipe.keep_only.items():
        keep = {path for name in kept for path in matching(root, f"{directory}/{name}")}
        remove_all(root, [str(path)[len(str(root)):] for path in matching(root, f"{directory}/*") if path not in keep])
    for directory in recipe.directories:
        inside(root, directory).mkdir(exist_ok=True)
    for file, place in recipe.files.items():
        remove_all(root, [place])
        shutil.copyfile(recipe.source(file), inside(root, place))
        shutil.copymode(recipe.source(file), inside(root, place))
    for link, target in recipe.links.items():
        remove_all(root, [link])
        inside(root, link).symlink_to(target)


def run_inside(root, line, doing, step):
    """Runs a program of the tree in it, as root, to finish it: in namespaces of its own, but it may write the tree."""
    run([*ALONE, "chroot", root, *line], doing, step)


# No mount, process, socket or name of the host's; what is left behind is killed.
ALONE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]
# Nobody: owns nothing of a tree, and cannot become more.
NOBODY = 65534


def compile_bytecode(bytecode, root, below, work, step):
    """Byte-compiles Python's library by the tree's own interpreter, over what it lies on. The tree is read-only to it; what it
    writes goes to a directory of its own, of which only what has a source beside it is taken over."""
    out, at = work / "bytecode", work / "root"
    at.mkdir()
    out.mkdir()
    os.chown(out, NOBODY, NOBODY)
    # Names without a colon or a comma, which separate the layers of an overlay.
    for number, layer in enumerate([root, *below]):
        (work / f"layer{number}").symlink_to(layer)
    layers = ":".join(f"layer{number}" for number in range(len(below) + 1))
    # Hashes are not compared at run time: the trees do not change. With hash randomisation sets would be written in any order.
    # What the compiler imports itself it would write too, in another form, and then take for done: so -B, and -f.
    compiler = [bytecode["python"], "-P", "-B", "-m", "compileall", "-f", "-q", "--invalidation-mode", "unchecked-hash", *bytecode["below"]]
    inner = ["env", "-i", "PYTHONPYCACHEPREFIX=/tmp/out", "PYTHONHASHSEED=0", "PATH=/usr/bin", "TZ=UTC", "LC_ALL=C.UTF-8", *compiler]
    script = f"""
        mount -t overlay overlay -o ro,lowerdir={layers} root
        mount -t tmpfs -o size=1m,mode=0755 tmpfs root/tmp
        mkdir root/tmp/out
        mount --bind bytecode root/tmp/out
        mount -t proc -o ro proc root/proc
        exec setpriv --no-new-privs chroot --userspec={NOBODY}:{NOBODY} --groups={NOBODY} root {shlex.join(inner)}
    """
    run([*ALONE, "sh", "-euc", script], "byte-compile the library", step, cwd=work)
    take_bytecode(out, root)
    shutil.rmtree(out)


def take_bytecode(out, root):
    """out/DIR/NAME.TAG.pyc → DIR/__pycache__/NAME.TAG.pyc."""
    taken = 0
    for path in walk(out):
        path = Path(os.fsdecode(path))
        place = path.relative_to(out)
        source = root / place.parent / f"{path.name.split('.')[0]}.py"
        if not (stat.S_ISREG(path.lstat().st_mode) and path.suffix == ".pyc" and source.is_file()):
            continue
        shutil.copyfile(path, inside(root, f"{place.parent}/__pycache__/{path.name}"), follow_symlinks=False)
        taken += 1
    if not taken:
        raise Trouble("The tree's own Python compiled nothing: are the directories in the recipe's [bytecode] right?")


def exists_in(root, place):
    """Whether a tree alone has this file or directory, links followed, but only inside of it."""
    root = root.resolve()
    path = (root / place.lstrip("/")).resolve()
    return path.is_relative_to(root) and path.exists()


def inside(root, place):
    path = root / place.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Links of the tree are resolved inside it, or a package could make us write to the host.
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise Trouble(f"{place} lies behind a link that leaves the tree.")
    return path


def matching(root, pattern):
    return [Path(path) for path in sorted(glob.glob(glob.escape(str(root)) + pattern))]


def remove_all(root, patterns):
    for pattern in patterns:
        for path in matching(root, pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def walk(root):
    """Every path below root and root itself, each directory after what it contains."""
    for directory, directories, files in os.walk(os.fsencode(root), topdown=False):
        for name in directories + files:
            yield os.path.join(directory, name)
    yield os.fsencode(root)


def normalise(root, owner):
    for path in walk(root):
        mode = os.lstat(path).st_mode
        os.chown(path, owner, owner, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            # After the chown; and no setuid, setgid or private file remains.
            os.chmod(path, 0o755 if stat.S_ISDIR(mode) or mode & 0o111 else 0o644)
        os.utime(path, (TREE_TIME, TREE_TIME), follow_symlinks=False)


def digest(root):
    """The name of a tree, which is the SHA-256 of its listing (path, type, mode, content or target; sorted by path), and the listing,
    files and bytes. `kiln runtime verify` reads trees in the same way."""
    listing, files, size = [], 0, 0
    for path in walk(root):
        status = os.lstat(path)
        place = path[len(os.fsencode(root)):] or b"/"
        mode = b"%04o" % stat.S_IMODE(status.st_mode)
        if stat.S_ISDIR(status.st_mode):
            row = [b"d", mode, b"-"]
        elif stat.S_ISLNK(status.st_mode):
            row = [b"l", b"-", os.readlink(path)]
        elif stat.S_ISREG(status.st_mode):
            row = [b"f", mode, hash_file(path).encode()]
            files, size = files + 1, size + status.st_size
        else:
            raise Trouble(f"{os.fsdecode(place)} is neither file, directory nor link; such a thing has no place in a tree.")
        listing.append((place, row))
    text = b"".join(b"\0".join([place, *row]) + b"\n" for place, row in sorted(listing))
    return hashlib.sha256(text).hexdigest(), text, files, size


def hash_file(path):
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            whole.update(part)
    return whole.hexdigest()
