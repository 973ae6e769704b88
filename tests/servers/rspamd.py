"""A private rspamd: Debian's own rules, nothing asked over a network, Bayes in files.

Its controller answers checks as its normal worker does. Two processes at a start would race for the new Bayes files.
"""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import ClassVar

from tests.servers.process import Process, Server, find_program, free_port

PASSWORD = "private-rspamd"
DISABLED = (
    *("antivirus", "arc", "asn", "bimi", "clickhouse", "dcc", "dkim", "dkim_signing", "dmarc", "elastic", "external_services"),
    *("fuzzy_check", "greylist", "hfilter", "history_redis", "metadata_exporter", "metric_exporter", "milter_headers", "mx_check"),
    *("neural", "p0f", "ratelimit", "rbl", "replies", "reputation", "rspamd_update", "spf", "surbl", "url_redirector", "whitelist"),
)
PHISHING = "enabled = true;\nopenphish_enabled = false;\nphishtank_enabled = false;\n"
OPTIONS = """\
dns {{ nameserver = ["127.0.0.1:{dns_port}:1"]; timeout = 0.1s; retransmits = 1; }}
filters = "chartable,regexp";
hs_cache_dir = "{directory}/";
disable_hyperscan = true;
url_tld = "{directory}/tld.dat";
control_socket = "{directory}/control.sock mode=0600";
"""
STATISTIC = """\
classifier "bayes" {{
  tokenizer {{ name = "osb"; }}
  cache {{ type = "sqlite3"; path = "{directory}/learned.sqlite"; }}
  backend = "sqlite3";
  min_tokens = 1;
  min_learns = 1;
  statfile {{ symbol = "BAYES_HAM"; path = "{directory}/bayes.ham.sqlite"; spam = false; }}
  statfile {{ symbol = "BAYES_SPAM"; path = "{directory}/bayes.spam.sqlite"; spam = true; }}
  learn_condition = 'return function() return true end';
}}
"""


class Rspamd(Server):
    """`url` checks, `controller_url` learns, both with PASSWORD."""

    package: ClassVar[str] = "rspamd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._program = find_program(self.package, "rspamd")
        self._controller_port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def controller_url(self) -> str:
        return f"http://127.0.0.1:{self._controller_port}"

    def _spawn(self) -> Process:
        self._controller_port = self._controller_port or free_port()
        for path, text in self._files().items():
            file = self.directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        places = {"LOCAL_CONFDIR": self.directory, "DBDIR": self.directory, "RUNDIR": self.directory, "LOGDIR": self.directory}
        variables = [word for name, value in places.items() for word in ("--var", f"{name}={value}")]
        return Process([self._program, "-f", "-i", "-c", "/etc/rspamd/rspamd.conf", *variables], log=self.log)

    def _files(self) -> dict[str, str]:
        nowhere = free_port()
        sockets = ", ".join(f'"127.0.0.1:{port}"' for port in (self.port, self._controller_port))
        return {
            **{f"local.d/{name}.conf": "enabled = false;\n" for name in DISABLED},
            "local.d/phishing.conf": PHISHING,
            "local.d/logging.inc": 'type = "console";\nlevel = "warning";\n',
            "tld.dat": "".join(f"{name}\n" for name in ("com", "net", "org", "test", "example")),
            "override.d/options.inc": OPTIONS.format(dns_port=nowhere, directory=self.directory),
            "override.d/statistic.conf": STATISTIC.format(directory=self.directory),
            "override.d/worker-controller.inc": f'bind_socket = [{sockets}];\ncount = 1;\npassword = "{PASSWORD}";\nsecure_ip = [];\n',
            "local.d/worker-normal.inc": "enabled = false;\ncount = 0;\n",
            "local.d/worker-proxy.inc": "enabled = false;\ncount = 0;\n",
        }

    def _answers(self) -> bool:
        return all(_ping(port) for port in (self.port, self._controller_port))


def _ping(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().read().strip() == b"pong"
    except http.client.HTTPException:
        return False
    finally:
        connection.close()
