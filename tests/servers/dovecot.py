"""A private Dovecot: IMAP and POP3 on loopback, mail as Maildir files that tests write directly."""

from __future__ import annotations

import base64
import grp
import imaplib
import itertools
import os
import pwd
import re
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from tests.servers.certificate import write_self_signed
from tests.servers.process import Process, Server, find_program, free_port, talk

MAIL_ID = 5730
"""User and group of the mail files when root starts Dovecot; the number needs no entry in /etc/passwd."""

CONFIGURATION = """\
base_dir = {directory}/run
state_dir = {directory}/run
log_path = {directory}/dovecot.log
protocols = imap pop3
listen = 127.0.0.1
ssl = yes
ssl_cert = <{directory}/certificate.pem
ssl_key = <{directory}/key.pem
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
first_valid_uid = 1
first_valid_gid = 1
mail_location = maildir:{directory}/mail/%u/Maildir
mail_fsync = never
mailbox_list_index = yes
mail_max_userip_connections = 50
login_trusted_networks = 127.0.0.0/8
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
passdb {{
  driver = passwd-file
  args = username_format=%u {directory}/users/%u
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u allow_all_users=yes
}}
namespace inbox {{
  inbox = yes
  separator = /
{special_folders}
}}
mail_plugins = $mail_plugins zlib quota
protocol imap {{
  mail_plugins = $mail_plugins imap_zlib imap_quota
  mail_max_userip_connections = 50
}}
plugin {{
  quota = maildir:all
  quota_rule = *:storage=1T
  quota_rule2 = {full_folder}:messages=3
}}
service imap-login {{
  chroot = {login_chroot}
  process_min_avail = 1
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {imaps_port}
    ssl = yes
  }}
}}
service pop3-login {{
  chroot = {login_chroot}
  inet_listener pop3 {{
    port = {pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service anvil {{
  chroot = {anvil_chroot}
}}
service stats {{
  chroot =
}}
"""
FULL_FOLDER = "Full"
"""Takes no message more while the user has three or more in all."""
SPECIAL_FOLDER = "  mailbox {name} {{\n    special_use = \\{name}\n    auto = create\n  }}"


class Dovecot(Server):
    """Users are added while it runs; every user has INBOX, Drafts, Sent, Junk and Trash with their special uses."""

    package: ClassVar[str] = "dovecot-imapd"
    host = "127.0.0.1"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._program = find_program(self.package, "dovecot")
        self._doveadm = find_program(self.package, "doveadm")
        find_program("dovecot-imapd", "/usr/lib/dovecot/imap", "/usr/libexec/dovecot/imap")
        find_program("dovecot-pop3d", "/usr/lib/dovecot/pop3", "/usr/libexec/dovecot/pop3")
        self._counter = itertools.count()
        self.pop3_port = 0
        self.imaps_port = 0

    @property
    def imap_port(self) -> int:
        """Plain text; offers STARTTLS with the certificate of `certificate`."""
        return self.port

    @property
    def url(self) -> str:
        return f"imap://{self.host}:{self.imap_port}"

    @property
    def certificate(self) -> Path:
        """Self-signed, for `localhost` and 127.0.0.1; clients that shall trust it load it as their CA file."""
        return self.directory / "certificate.pem"

    def add_user(self, name: str, password: str) -> None:
        """Add the user or change its password; known to the running server when this returns."""
        users = self.directory / "users"
        users.mkdir(exist_ok=True)
        entry = users / name
        before = entry.stat().st_mtime if entry.exists() else None
        encoded = base64.b64encode(password.encode()).decode()
        entry.write_text(f"{name}:{{PLAIN.b64}}{encoded}\n")
        if before is not None:  # Dovecot looks at a file it knows once a second, and compares its time in whole seconds
            os.utime(entry, (before + 2, before + 2))
            time.sleep(1.1 if self.running else 0)

    def deliver(self, user: str, raw: bytes, folder: str = "INBOX", flags: str = "", received_at: float | None = None) -> None:
        """Put a message into a Maildir folder. `flags` are Maildir's letters (S seen, R answered, F flagged, T trashed, D draft)."""
        maildir = self._maildir(user, folder)
        size, crlf_size = len(raw), len(raw) + len(re.findall(rb"(?<!\r)\n", raw))
        seconds, number = int(time.time()), next(self._counter)
        name = f"{seconds}.M{number:06d}P{os.getpid()}.test,S={size},W={crlf_size}:2,{''.join(sorted(flags))}"
        draft = maildir / "tmp" / name
        draft.write_bytes(raw)
        self._give_to_dovecot(draft)
        if received_at is not None:
            os.utime(draft, (received_at, received_at))
        draft.rename(maildir / "cur" / name)

    def imap_client(self, user: str, password: str) -> imaplib.IMAP4:
        """A logged-in client; close it with `logout()` or as a context manager."""
        client = imaplib.IMAP4(self.host, self.imap_port, timeout=30)
        client.authenticate("PLAIN", lambda _challenge: f"\0{user}\0{password}".encode())  # LOGIN takes ASCII only
        return client

    def doveadm(self, *args: str) -> str:
        """The output of `doveadm`, for example `doveadm("mailbox", "update", "-u", "ann", "--uid-validity", "7", "INBOX")`."""
        command = [str(self._doveadm), "-c", str(self.directory / "dovecot.conf"), *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"doveadm {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _spawn(self) -> Process:
        self.pop3_port = self.pop3_port or free_port()
        self.imaps_port = self.imaps_port or free_port()
        (self.directory / "users").mkdir(exist_ok=True)
        (self.directory / "mail").mkdir(exist_ok=True)
        self._give_to_dovecot(self.directory / "mail")
        if not self.certificate.exists():
            write_self_signed(self.certificate, self.directory / "key.pem")
        configuration = self.directory / "dovecot.conf"
        configuration.write_text(CONFIGURATION.format(**self._values()))
        return Process([self._program, "-F", "-c", configuration], log=self.log)

    def _values(self) -> dict[str, object]:
        special = "\n".join(SPECIAL_FOLDER.format(name=name) for name in ("Drafts", "Sent", "Junk", "Trash"))
        ports = {"port": self.port, "pop3_port": self.pop3_port, "imaps_port": self.imaps_port}
        common = {"directory": self.directory, "special_folders": special, "full_folder": FULL_FOLDER, **ports}
        if os.geteuid() == 0:
            users = {"internal_user": "dovecot", "internal_group": "dovecot", "login_user": "dovenull", "uid": MAIL_ID, "gid": MAIL_ID}
            return {**common, **users, "login_chroot": "login", "anvil_chroot": "empty"}
        me, mine = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        users = {"internal_user": me, "internal_group": mine, "login_user": me, "uid": os.geteuid(), "gid": os.getegid()}
        return {**common, **users, "login_chroot": "", "anvil_chroot": ""}

    def _answers(self) -> bool:
        return talk(self.imap_port).startswith(b"* OK") and talk(self.pop3_port).startswith(b"+OK")

    def _maildir(self, user: str, folder: str) -> Path:
        home = self.directory / "mail" / user
        inbox = home / "Maildir"
        maildir = inbox if folder == "INBOX" else inbox / ("." + _modified_utf7(folder).replace("/", "."))
        if maildir != inbox and self.running and not maildir.exists():
            self.doveadm("mailbox", "create", "-u", user, folder)  # so that Dovecot's index of folders knows it at once
        for path in (home, inbox, maildir, maildir / "tmp", maildir / "new", maildir / "cur"):
            if not path.exists():
                path.mkdir(mode=0o700)
                self._give_to_dovecot(path)
        if maildir != inbox and not (maildir / "maildirfolder").exists():
            (maildir / "maildirfolder").touch()
            self._give_to_dovecot(maildir / "maildirfolder")
        return maildir

    def _give_to_dovecot(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, MAIL_ID, MAIL_ID)


def _modified_utf7(name: str) -> str:
    """A mailbox name as IMAP and Maildir folders spell it (RFC 3501, section 5.1.3)."""

    def encoded(run: re.Match[str]) -> str:
        return "&" + base64.b64encode(run[0].encode("utf-16-be")).decode().rstrip("=").replace("/", ",") + "-"

    return re.sub(r"[^\x20-\x7e]+", encoded, name.replace("&", "&-"))
