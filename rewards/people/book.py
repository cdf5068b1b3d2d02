"""People's records of one reward run, in memory; and in its folder `users/` once there is one."""

from collections.abc import Callable, Iterable, Sequence

from rewards.basis.store import FittedBasis, RewardRun
from rewards.errors import UserError
from rewards.people import records
from rewards.people.records import Answer, UserRecord


class Book:
    """Looks people up and takes down what they answer; somebody unknown is exactly the prior.

    Args:
      basis: what coefficients belong to; a stored one (`RewardRun`) keeps its records in its folder.
      first: the records there are at first, made when somebody is looked up; for a basis in memory.
    """

    def __init__(self, basis: FittedBasis, first: Callable[[], Iterable[UserRecord]] = tuple):
        self._basis, self._first = basis, first
        self._records: dict[str, UserRecord] | None = None

    @property
    def run(self) -> RewardRun | None:
        """The stored run behind the records; None in memory."""
        return self._basis if isinstance(self._basis, RewardRun) else None

    def get(self, name: str) -> UserRecord:
        """The person's record; that of somebody unknown is not stored anywhere.

        Raises:
          UserError: the stored record is damaged or of another basis, or the name is none.
        """
        records.file_name(name)  # the same names are refused in memory and on disk
        if self.run is not None:
            known = records.exists(self.run.users, name)
            return records.load(self.run.users, name, self.run) if known else self._new(name)
        return self._known().get(name) or self._new(name)

    def add(self, name: str, *, answers: Sequence[Answer] = (), skipped: Sequence[str] = ()) -> UserRecord:
        """Take events down and return the record that follows; on disk it is written at once."""
        if self.run is not None:
            return records.add(self.run.users, self.run, name, answers=answers, skipped=skipped)
        record = records.with_events(self._basis, self.get(name), answers=answers, skipped=skipped)
        self._known()[name] = record
        return record

    def names(self) -> tuple[str, ...]:
        """Everybody with a record, in alphabetical order."""
        if self.run is not None:
            return tuple(name for name, _ in records.list_records(self.run.users))
        return tuple(sorted(self._known()))

    def forget(self, name: str) -> None:
        """Erase a record and everything the person answered."""
        if self.run is not None:
            records.forget(self.run.users, name)
        elif self._known().pop(name, None) is None:
            raise UserError(f"{name!r}: no such person; known: {', '.join(self.names()[:10]) or 'nobody'}")

    def keep_in(self, run: RewardRun) -> None:
        """Write every record into the folder of a stored run of the same basis, and stay there."""
        for record in self._known().values():
            records.write(run.users, record)
        self._basis, self._records = run, None

    def _new(self, name: str) -> UserRecord:
        return records.new_record(self._basis, name)

    def _known(self) -> dict[str, UserRecord]:
        if self._records is None:
            self._records = {record.user_id: record for record in self._first()}
        return self._records
