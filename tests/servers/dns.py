"""A small DNS server on loopback UDP that answers TXT questions from a table, and that can be told to fail."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.servers.process import free_port

TTL = 600


class DnsServer:
    """`records` maps names without their final dot to TXT records; other names do not exist. `asked` are the questions, in order."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.is_silent = False
        self.rcode = dns.rcode.NOERROR
        self.port = free_port()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        """As the setting has it."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._socket.bind(("127.0.0.1", self.port))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as goodbye:
            goodbye.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(20)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, caller = self._socket.recvfrom(4096)
            if not data:
                return
            answer = self._answer(dns.message.from_wire(data))
            if not self.is_silent:
                self._socket.sendto(answer.to_wire(), caller)

    def _answer(self, question: dns.message.Message) -> dns.message.Message:
        asked = question.question[0].name
        name = asked.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        answer = dns.message.make_response(question)
        answer.flags |= dns.flags.RA
        answer.set_rcode(self.rcode if name in self.records or self.rcode else dns.rcode.NXDOMAIN)
        if name in self.records and not self.rcode:
            record = self.records[name].decode()
            pieces = " ".join(f'"{record[start : start + 200]}"' for start in range(0, len(record), 200))
            answer.answer.append(dns.rrset.from_text(asked, TTL, dns.rdataclass.IN, dns.rdatatype.TXT, pieces))
        return answer
