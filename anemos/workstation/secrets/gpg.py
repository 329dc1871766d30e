"""The one module that owns GPG: bytes in, bytes out, every failure one message with a name in it.

Ciphertext is encrypted and signed: with encryption alone, whoever has the public keys could replace
a secret. What is signed includes a LABEL, which says what the secret is (notation data, RFC 4880,
5.2.3.16): else whoever can write files could give one secret the name of another. Passphrases never
pass through here: gpg-agent(1) asks for them.
"""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import gnupg

from anemos import log
from anemos.log import die

TTY = "gpg-agent asks for passphrases on the terminal that it knows: export GPG_TTY=$(tty)"
DAMAGED = "is damaged: truncated or tampered with"
NOTATION = "secret@anemos"
MOVED = "renamed it? gpg --decrypt FILE | ./inv secrets.set --host HOST --name NAME"

# What the user's gpg.conf may say, for mail: hide the recipients, add one.
NO_MORE_NO_LESS = ["--no-throw-keyids", "--no-encrypt-to"]
HIDDEN = "0000000000000000"  # the key ID of a recipient who is hidden

# Status keyword (doc/DETAILS of GnuPG) -> what a failed decryption means; the first match counts.
UNREADABLE = {
    "DECRYPTION_KEY": (DAMAGED, ""),  # the session key was found: nothing is missing
    "NEED_PASSPHRASE_SYM": ("is encrypted with a passphrase, not to the recipients", ""),
    "PINENTRY_LAUNCHED": ("is encrypted to a key whose passphrase was not given", TTY),
    "ERROR": ("cannot be decrypted: it is damaged, or its key is locked", TTY),
    "NO_SECKEY": ("is encrypted to keys whose secret part is not here", "gpg --list-secret-keys"),
    "ENC_TO": (DAMAGED, ""),
}
NO_SECRET_KEY = 17  # gpg-error.h: GPG_ERR_NO_SECKEY, in the lower 16 bits
ANYBODY = "whoever knows a passphrase"  # beside fingerprints in `recipients`
NOT_CIPHERTEXT = (f"is not encrypted, or {DAMAGED}", "")

# The same for what was decrypted, but has no valid signature.
UNTRUSTED = {
    "BADSIG": "has a bad signature",
    "NO_PUBKEY": "is signed by an unknown key",
    "REVKEYSIG": "is signed by a key that was revoked",
    "EXPSIG": "has an expired signature",
    "NEWSIG": "has a signature that gpg cannot check",
}

# Ed25519 is made in milliseconds. No passphrase: a throw-away key protects nothing real.
THROWAWAY_KEY = """\
%no-protection
Key-Type: EDDSA
Key-Curve: ed25519
Key-Usage: sign
Subkey-Type: ECDH
Subkey-Curve: cv25519
Subkey-Usage: encrypt
Name-Real: {name}
Expire-Date: 0
%commit
"""


class Keyring:
    """The keys in the GnuPG home HOME, a directory with mode 0700 (None: the user's own).

    All that goes wrong, a missing gpg(1) too, raises Failure with exit status 2 and the NAME given.
    Fingerprints are those of primary keys: 40 upper-case hexadecimal digits.
    """

    def __init__(self, home: Path | None) -> None:
        try:
            self.gpg = gnupg.GPG(gnupghome=None if home is None else os.fspath(home))
        except OSError:
            die("gpg not found", hint="run ./inv: it installs what is missing")
        except ValueError as error:
            die(f"gpg does not work: {error}")

    def generate(self, name: str) -> str:
        """Make a throw-away key without passphrase for NAME and return its fingerprint."""
        made = self.gpg.gen_key(THROWAWAY_KEY.format(name=name))
        if not made.fingerprint:
            hint = (
                "gpg-agent's socket lies in the GnuPG home: its path must be shorter than 108 bytes"
            )
            die(f"cannot make a GPG key for {name}: {complaint(made)}", hint=hint)
        return str(made.fingerprint)

    def encrypt(self, data: bytes, name: str, recipients: list[str], label: str) -> bytes:
        """Encrypt DATA to all RECIPIENTS, signed as LABEL by the first whose secret key is here."""
        self._check(recipients, name)
        secret = self.gpg.list_keys(secret=True).fingerprints
        signer = next((one for one in recipients if one in secret), None)
        if signer is None:
            die(f"cannot sign {name}: no recipient's secret key is here")
        # gpg expands %-words, and notation data is printable.
        notation = f"{NOTATION}={quote(label)}".replace("%", "%%")
        words = [*NO_MORE_NO_LESS, "--local-user", signer, "--sig-notation", notation]
        options = {"sign": True, "armor": False, "extra_args": words}
        # always_trust: full fingerprints leave nothing to guess.
        result = self.gpg.encrypt(data, recipients, always_trust=True, **options)
        if not result.ok or result.returncode:
            die(f"cannot encrypt {name}: {complaint(result)}", hint=TTY)
        return bytes(result.data)

    def decrypt(self, data: bytes, name: str, signers: list[str], label: str) -> bytes:
        """Return the plaintext of DATA, which one of SIGNERS must have signed as LABEL."""
        result = self._decrypt(data, name)
        # A failed result has data too, which nothing authenticates: hands off before this.
        check_result(result, name, signers)
        check_label(result, name, label)
        return bytes(result.data)

    def recipients(self, data: bytes, name: str) -> list[str]:
        """Tell whom DATA is encrypted to, without decrypting it: fingerprints, sorted.

        For a key that is not here, its key ID stands there (16 digits); ANYBODY for a passphrase.
        """
        owners = {
            key_id: key["fingerprint"]
            for key in self.gpg.list_keys()
            for key_id in (key["keyid"], *(subkey[0] for subkey in key["subkeys"]))
        }
        return sorted({owners.get(key_id, key_id) for key_id in self.key_ids(data, name)})

    def key_ids(self, data: bytes, name: str) -> list[str]:
        """Tell which keys DATA is encrypted to, mostly subkeys: their IDs, sorted; or ANYBODY."""
        # Twice verbose, gpg lists the packets: of passphrases it has no status line.
        lines = self._decrypt(data, name, "--list-only", "-v", "-v").stderr.splitlines()
        found = {line.split()[2] for line in lines if line.startswith("[GNUPG:] ENC_TO ")}
        if any(line.startswith(":symkey enc packet:") for line in lines):
            found.add(ANYBODY)
        return sorted(found) or die(f"{name} {NOT_CIPHERTEXT[0]}")

    def chosen(self, recipients: list[str]) -> list[str]:
        """The IDs of the keys that gpg encrypts to today for RECIPIENTS: it chooses a subkey."""
        name = "to the recipients"
        self._check(recipients, name)
        options = {"armor": False, "extra_args": NO_MORE_NO_LESS}
        result = self.gpg.encrypt(b"", recipients, always_trust=True, **options)
        if not result.ok:
            die(f"cannot encrypt {name}: {complaint(result)}")
        return self.key_ids(bytes(result.data), name)

    def holds(self, fingerprints: list[str]) -> bool:
        """Tell whether the secret part of one of these keys is here."""
        return not set(self.gpg.list_keys(secret=True).fingerprints).isdisjoint(fingerprints)

    def _decrypt(self, data: bytes, name: str, *options: str) -> Any:
        if not data:
            die(f"{name} is empty")
        try:
            return self.gpg.decrypt(data, extra_args=list(options))
        except BrokenPipeError:  # gpg gave up before it had read everything, as it may or may not
            die(f"{name} {NOT_CIPHERTEXT[0]}")

    def _check(self, recipients: list[str], name: str) -> None:
        """Die with the recipient that is unfit: gpg would only say "invalid recipient"."""
        keys = {key["fingerprint"]: key for key in self.gpg.list_keys()}
        for one in recipients:
            if one not in keys:
                die(f"cannot encrypt {name}: no public key of {one}", hint=f"gpg --recv-keys {one}")
            if "E" not in keys[one]["cap"]:  # capital: the key as a whole can encrypt, now
                why = {"e": "has expired", "r": "was revoked"}.get(
                    keys[one]["trust"], "cannot do it"
                )
                die(f"cannot encrypt {name}: the key {one} {why}")


def check_result(result: Any, name: str, signers: list[str]) -> None:
    """Die unless RESULT was decrypted, whole, and is validly signed by one of SIGNERS."""
    lines = [line.split() for line in result.stderr.splitlines()]
    status = [
        words[1:] for words in lines if words[:1] == ["[GNUPG:]"] and not key_of_others(words)
    ]
    seen = {words[0] for words in status}
    if not result.ok:
        what, hint = next((UNREADABLE[key] for key in UNREADABLE if key in seen), NOT_CIPHERTEXT)
        die(f"{name} {what}", hint=hint)
    # A signature stays good when its key expires; whom it is trusted from, SIGNERS say. Revoked
    # keys are no good. RESULT has no say: GnuPG 2.4 tells FAILURE where one of several keys fits.
    good, expired = ({each, "VALIDSIG"} <= seen for each in ("GOODSIG", "EXPKEYSIG"))
    if not (good or expired) or (result.returncode and not tried(status)):
        what = next((UNTRUSTED[key] for key in UNTRUSTED if key in seen), "is not signed")
        die(f"{name} {what}")
    # Of several signatures gpg tells no more than one by one which of them says what.
    if [words[0] for words in status].count("NEWSIG") != 1:
        die(f"{name} has several signatures")
    if result.pubkey_fingerprint not in signers:  # of the primary key, even if a subkey signed
        die(f"{name} is signed by {result.pubkey_fingerprint}, which is not a recipient")
    if expired:
        log.info(f"{name}: the key {result.pubkey_fingerprint} that signed it has expired since")


def tried(status: list[list[str]]) -> bool:
    """Tell whether gpg fails only as it tried one key after the other for a hidden recipient."""
    hidden = any(words[:2] == ["ENC_TO", HIDDEN] for words in status)
    return hidden and {"DECRYPTION_OKAY", "VALIDSIG"} <= {words[0] for words in status}


def key_of_others(words: list[str]) -> bool:
    """Tell whether a status line says no more than NO_SECKEY, as an ERROR: GnuPG 2.4 does both."""
    return words[1:3] == ["ERROR", "pkdecrypt_failed"] and int(words[3]) & 0xFFFF == NO_SECRET_KEY


def check_label(result: Any, name: str, label: str) -> None:
    """Die unless the one valid signature of RESULT says LABEL."""
    # doc/DETAILS of GnuPG: escaped like a URL; long data comes in several lines.
    found = re.findall(
        rf"^\[GNUPG:\] NOTATION_NAME {NOTATION}\n((?:\[GNUPG:\] NOTATION_(?:FLAGS|DATA) .*\n)*)",
        result.stderr,
        re.MULTILINE,
    )
    said = [
        unquote(unquote("".join(re.findall(r"NOTATION_DATA (.*)\n", lines)))) for lines in found
    ]
    if not said:
        die(f"{name}: its signature does not say which secret it is", hint=MOVED)
    if said != [label]:
        die(f"{name} is the secret {', '.join(said)}, under another name", hint=MOVED)


def complaint(result: Any) -> str:
    """The last thing that gpg told a human."""
    said = [line for line in result.stderr.splitlines() if line.startswith("gpg: ")]
    return said[-1].removeprefix("gpg: ") if said else str(result.status)
