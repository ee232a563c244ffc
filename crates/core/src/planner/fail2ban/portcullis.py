# Written by portcullis: `portcullis apply` replaces it.
"""Bans in the sets of table inet portcullis, one pair of sets a jail.

There they hold for the host's own ports, for ports that containers publish and for connections that
are open already, and no reload of a firewall loses them. fail2ban loads this file as the action
`portcullis`; run as a program, it puts every ban on record back in one batch (at boot, and after
somebody flushed all tables).

What it relies on: the class of an action (fail2ban 0.11 to 1.1, `server/action.py`), and the table
`bips` of fail2ban's database.
"""
import contextlib
import ipaddress
import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time

NFT = "/usr/sbin/nft"
TABLE = "inet portcullis"
GUARD = "/etc/portcullis/guard.nft"
DATABASE = "/var/lib/fail2ban/fail2ban.sqlite3"
BY_HAND = "/var/lib/portcullis/bans"
# An IPv6 address is banned with its whole network of this many bits.
PREFIX6 = @PREFIX6@
# The sets of each jail have these names, with 4 or 6 behind them.
SETS = @SETS@
HAND = "hand"
# No ban lasts longer than nft can say.
LONGEST = 2**31 // 1000 * 1000


def nft(batch):
    """One transaction: all of it or nothing."""
    done = subprocess.run(
        [NFT, "-f", "-"], input=batch, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True, env={"LC_ALL": "C"}, timeout=60)
    if done.returncode:
        raise RuntimeError("nft: " + done.stderr.strip()[:500])


def place(name, address):
    """The set and the element for an address of any spelling."""
    address = ipaddress.ip_address(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    if address.version == 6 and PREFIX6 < 128:
        address = ipaddress.ip_network((int(address), PREFIX6), strict=False).network_address
    return "%s%d" % (name, address.version), str(address)


def element(address, seconds, failures=None):
    """An element of a set; `seconds` below 0: for ever."""
    text = address
    if seconds >= 0:
        text += " timeout %ds" % max(1, min(int(seconds), LONGEST))
    if failures is not None:
        text += ' comment "%d failures"' % int(failures)
    return text


def renew(name, address, seconds, failures=None):
    """Statements that add an element, or give it another timeout."""
    where, address = place(name, address)
    return "".join(
        "%s element %s %s { %s }\n" % (verb, TABLE, where, what)
        for verb, what in (
            ("add", address), ("delete", address), ("add", element(address, seconds, failures))))


def remove(name, address):
    """Statements that succeed also when the ban has run out by itself."""
    where, address = place(name, address)
    return "".join(
        "%s element %s %s { %s }\n" % (verb, TABLE, where, address) for verb in ("add", "delete"))


def on_record(database, jail):
    """(address, seconds left or -1, failures) of each ban that fail2ban has in its database."""
    if not database or not os.path.isfile(database):
        return None
    now = time.time()
    uri = "file:%s?mode=ro" % database.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10)) as db:
        rows = db.execute(
            "SELECT ip, timeofban, bantime, data FROM bips WHERE jail = ?"
            " AND (bantime < 0 OR timeofban + bantime > ?)", (jail, now)).fetchall()
    found = []
    for address, since, lasts, data in rows:
        try:
            failures = int(json.loads(data).get("failures", 0)) if data else 0
        except (ValueError, AttributeError, TypeError):
            failures = 0
        left = -1 if lasts < 0 else since + lasts - now
        found.append((address, left, failures))
    return found


def by_hand():
    """The bans of `portcullis ban`: lines of address, begin and end in seconds since 1970, 0 for no end."""
    found = []
    now = time.time()
    try:
        with open(BY_HAND, encoding="ascii", errors="replace") as lines:
            for line in lines:
                words = line.split()
                if len(words) == 3 and words[1].isdigit() and words[2].isdigit():
                    end = int(words[2])
                    if end == 0 or end > now:
                        found.append((words[0], end - now if end else -1, None))
    except FileNotFoundError:
        pass
    return found


def refill(name, bans):
    """A batch after which both sets of a jail hold exactly these bans."""
    sets = {"%s%d" % (name, version): {} for version in (4, 6)}
    for address, left, failures in bans:
        try:
            where, address = place(name, address)
        except ValueError:
            continue
        # Of several addresses of one IPv6 network the longest ban counts.
        rank = float("inf") if left < 0 else left
        if rank > sets[where].get(address, (0,))[0]:
            sets[where][address] = (rank, element(address, left, failures))
    batch = ""
    for where in sorted(sets):
        batch += "flush set %s %s\n" % (TABLE, where)
        elements = [text for _, text in sets[where].values()]
        if elements:
            batch += "add element %s %s { %s }\n" % (TABLE, where, ", ".join(elements))
    return batch


def restore(database, jails):
    """All bans of these jails, or of none where the database cannot tell."""
    batch = ""
    for jail in jails:
        bans = on_record(database, jail)
        if bans is not None:
            batch += refill(SETS[jail], bans)
    if batch:
        nft(batch)


def guarded():
    """True when the table and the chain that looks at the sets are there."""
    return subprocess.run(
        [NFT, "list", "chain", "inet", "portcullis", "prerouting"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode == 0


def bring_back(database):
    """The guard as a whole, after somebody deleted it: its rules, then every ban at once."""
    subprocess.run([NFT, "-f", GUARD], check=True, env={}, timeout=60)
    nft(refill(HAND, by_hand()))
    restore(database, SETS)


class Cutter:
    """Ends connections of banned addresses; in the background, for their packets are dropped already.

    Without it the peer's end hangs, and the server's waits for a quarter of an hour. The reset that
    closes the host's own sockets is the one thing that the guard lets out to them.
    """

    def __init__(self):
        self.waiting = queue.Queue()
        self.started = False

    def cut(self, address):
        if not self.started:
            self.started = True
            threading.Thread(target=self.work, name="portcullis-cut", daemon=True).start()
        where, address = place("", address)
        six = where == "6"
        bits = "/%d" % PREFIX6 if six and PREFIX6 < 128 else ""
        self.waiting.put((address + bits, "[%s]%s" % (address, bits) if six else address))

    def work(self):
        while True:
            tracked, peer = self.waiting.get()
            for argv in (["/usr/sbin/conntrack", "-D", "-s", tracked], ["/usr/bin/ss", "-K", "dst", peer]):
                if os.access(argv[0], os.X_OK):
                    try:
                        subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, env={}, timeout=20)
                    except (OSError, subprocess.SubprocessError):
                        pass


CUTTER = Cutter()


def database_setting():
    """`dbfile` of fail2ban.conf and what overrides it."""
    base = "/etc/fail2ban/"
    files = [base + "fail2ban.conf", base + "fail2ban.local"]
    for kind, at in ((".conf", 1), (".local", len(files) + 1)):
        folder = base + "fail2ban.d"
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        files[at:at] = [os.path.join(folder, name) for name in names if name.endswith(kind)]
    found = DATABASE
    for path in files:
        try:
            with open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    key, equals, value = line.partition("=")
                    if equals and key.strip() == "dbfile":
                        found = value.strip()
        except OSError:
            continue
    return found


if __name__ == "__main__":
    if not guarded():
        subprocess.run([NFT, "-f", GUARD], check=True, env={}, timeout=60)
    nft(refill(HAND, by_hand()))
    restore(database_setting(), SETS)
    sys.exit(0)


from fail2ban.server.action import ActionBase  # noqa: E402

# Python keeps a compiled copy next to this file; it would stay behind when this file is taken out.
with contextlib.suppress(NameError, OSError, TypeError):
    os.remove(__cached__)
    os.rmdir(os.path.dirname(__cached__))


class Action(ActionBase):
    """The action of one jail."""

    # fail2ban would add the bans of its last run one by one, minutes for ten thousand; start() does it at once.
    norestored = True

    def __init__(self, jail, name, **unused):
        super(Action, self).__init__(jail, name)
        if jail.name not in SETS:
            raise ValueError("the action portcullis has no set for jail %s" % jail.name)
        self.set = SETS[jail.name]

    @property
    def database(self):
        database = getattr(self._jail, "database", None)
        return getattr(database, "filename", None)

    def clearAllParams(self):
        pass

    def reload(self, **unused):
        # Without it, `fail2ban-client reload` would take the action out of its jail.
        pass

    def consistencyCheck(self, beforeRepair=None):
        if not guarded():
            bring_back(self.database)
        return True

    def start(self):
        if not guarded():
            bring_back(self.database)
        else:
            restore(self.database, [self._jail.name])

    def stop(self):
        # Bans end when their time is over, not with fail2ban: a restart opens nothing.
        pass

    def ban(self, aInfo):
        batch = renew(self.set, aInfo["ip"], int(aInfo["bantime"]), aInfo["failures"])
        try:
            nft(batch)
        except RuntimeError:
            if guarded():
                raise
            self._logSys.warning("[%s] the guard was gone: it is loaded again with all bans", self._jail.name)
            bring_back(self.database)
            nft(batch)
        CUTTER.cut(aInfo["ip"])

    @property
    def _prolongable(self):
        return True

    def prolong(self, aInfo):
        nft(renew(self.set, aInfo["ip"], int(aInfo["bantime"]), aInfo["failures"]))

    def unban(self, aInfo):
        where, address = place(self.set, aInfo["ip"])
        if where.endswith("6") and PREFIX6 < 128 and self.others(address, aInfo["ip"]):
            return
        nft(remove(self.set, aInfo["ip"]))

    def others(self, network, address):
        """True while another address of the same IPv6 network is banned."""
        for other, _, _ in on_record(self.database, self._jail.name) or []:
            try:
                if str(other) != str(address) and place(self.set, other)[1] == network:
                    return True
            except ValueError:
                continue
        return False

    def flush(self):
        """Called for `unban --all` and for every end of the jail alike; the database tells them apart,
        a moment later: what is no longer on record is taken out, and nothing else."""
        before = [address for address, _, _ in on_record(self.database, self._jail.name) or []]

        def settle():
            try:
                bans = on_record(self.database, self._jail.name)
                if bans is None:
                    return
                still = {place(self.set, address) for address, _, _ in bans}
                gone = [address for address in before if place(self.set, address) not in still]
                if gone:
                    nft("".join(remove(self.set, address) for address in gone))
            except Exception as error:  # a thread of its own: nobody else would tell
                self._logSys.error("[%s] bans were not taken out: %s", self._jail.name, error)

        timer = threading.Timer(0.5, settle)
        timer.daemon = True
        timer.start()
        return True
