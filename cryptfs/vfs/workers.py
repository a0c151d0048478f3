"""The threads behind an open tree: one empties the journal, one settles the files of a crash."""

from __future__ import annotations

from cryptfs.storage.sessions import is_unsettled
from cryptfs.vfs.content.checkpoint import Checkpointer
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.unsettled import Unsettled
from cryptfs.vfs.tree.tree import VaultTree


class Workers:
    """The workers of one tree; it has them from the start. Their threads run between `start` and `stop`.

    checkpointer: None if there is no redo log.
    unsettled:    None if no crash left anything.
    """

    def __init__(self, context: FileContext, tree: VaultTree, vault_fd: int) -> None:
        self.checkpointer: Checkpointer | None = None
        if context.redo is not None:
            self.checkpointer = Checkpointer(tree.files, context.redo)
            context.make_room = self.checkpointer.make_room
        self.unsettled: Unsettled | None = None
        if is_unsettled(vault_fd, context.owner):
            self.unsettled = Unsettled(context, tree.files, vault_fd)
            tree.verified_size = self.unsettled.plain_size

            def all_is_settled() -> None:
                tree.verified_size = None

            self.unsettled.on_over = all_is_settled

    def start(self) -> None:
        """After daemonising: start the threads."""
        if self.unsettled is not None:
            self.unsettled.start()
        if self.checkpointer is not None:
            self.checkpointer.start()

    def stop(self) -> None:
        """End the threads, and empty the journal as far as possible; call before closing the tree."""
        if self.unsettled is not None:
            self.unsettled.stop()
        if self.checkpointer is not None:
            self.checkpointer.stop()
