"""An error must leave no pointer of cffi on a memoryview.

Until Python 3.11.8 and 3.12.2 the garbage collector crashes on a memoryview in a reference loop while
something is exported from it (CPython issue 77894), and an exception with a traceback is easily in one:
a damaged chunk met by the thread pool took the process down so.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cryptfs.core.aead import SUITES, ChunkCipher
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.sodium import DirectCalls
from cryptfs.errors import ChunkError
from tests.support import CIPHERS, KIB, child_environment


class FailingCalls(DirectCalls):
    def seal(self, *_: object) -> None:
        raise RuntimeError("libsodium refused to seal")


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_error_leaves_the_buffers_free(cipher: str) -> None:
    suite = SUITES[cipher]
    geometry = ChunkGeometry(4 * KIB, suite.overhead)
    for calls in (None, FailingCalls(suite.function)):
        chunks = ChunkCipher(suite, geometry, calls)
        sealed = memoryview(bytearray(os.urandom(geometry.record_size)))
        out = memoryview(bytearray(geometry.record_size))
        with pytest.raises(RuntimeError if calls else ChunkError) as raised:
            if calls:
                chunks.seal_run(bytes(32), 0, sealed[:10], bytes(suite.nonce_size), out)
            else:
                chunks.open_run(bytes(32), 0, sealed, out, holes=False)
        sealed.release()  # BufferError while anything is exported
        out.release()
        assert raised.value.__traceback__ is not None


IN_A_LOOP = """
import gc, os
from cryptfs.core.aead import AEGIS_256, ChunkCipher
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.errors import ChunkError
from cryptfs.vfs.content.cipherpool import CipherPool

geometry = ChunkGeometry(4096, AEGIS_256.overhead)
pool = CipherPool(ChunkCipher(AEGIS_256, geometry), workers=2)
pool.min_chunks = 2
for _ in range(200):
    sealed = memoryview(bytearray(os.urandom(8 * geometry.record_size)))
    try:
        pool.open_run(bytes(32), 0, sealed, memoryview(bytearray(8 * 4096)), holes=False)
    except ChunkError as error:
        error.itself = error
    del sealed
    gc.collect()
pool.close()
print("survived")
"""


def test_the_collector_survives_damage_met_by_the_pool() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOOP],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr
