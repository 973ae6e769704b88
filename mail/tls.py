"""TLS for both protocols: certificates checked against the system's authorities and the host's name, unless the account says otherwise."""

from __future__ import annotations

import socket
import ssl

from core.hosts import is_private
from mail.accounts import Endpoint, Security
from mail.errors import CertificateRefused, ConnectionFailed, EncryptionRequired


def client_context(endpoint: Endpoint) -> ssl.SSLContext:
    """TLS 1.2 and later. Without `verify_tls` anybody's certificate will do (for servers on the own network)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not endpoint.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def secured(sock: socket.socket, endpoint: Endpoint) -> ssl.SSLSocket:
    """The socket after the handshake. Raises CertificateRefused or ConnectionFailed and then has closed it."""
    try:
        return client_context(endpoint).wrap_socket(sock, server_hostname=endpoint.host)
    except OSError as error:
        sock.close()
        raise handshake_error(error, endpoint) from error


def handshake_error(error: OSError, endpoint: Endpoint) -> CertificateRefused | ConnectionFailed:
    """What a failed handshake means: a wrong certificate stays wrong, a lost connection does not."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateRefused(f"The certificate of {endpoint.where} is not valid: {error.verify_message}.")
    if isinstance(error, ssl.SSLError) and not _is_loss(error):
        return CertificateRefused(f"{endpoint.where} does not speak TLS here, or no version we accept.")
    return ConnectionFailed(f"The connection to {endpoint.where} was lost while TLS was agreed.")


def _is_loss(error: ssl.SSLError) -> bool:
    """Whether the other side only went away. Which of these it is depends on when the end was noticed, and on Python's version."""
    lost = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    return isinstance(error, lost) or error.reason is None or "EOF" in error.reason


def refuse_clear_text_login(sock: socket.socket, endpoint: Endpoint) -> None:
    """Raises EncryptionRequired before a password leaves in clear text for a public address."""
    if endpoint.security is Security.PLAIN and not is_private(str(sock.getpeername()[0])):
        raise EncryptionRequired(f"No password is sent to {endpoint.where} without encryption; use tls or starttls.")
