"""The error tree. Every error a user can meet is one of these.

    FarcallError                        (Exception)
      InvalidError                      a wrong argument, declaration or use
        ConflictError                   the object's state does not allow the operation
          VolumeError                   (builtin RuntimeError) a volume cannot be committed or reloaded here and now
      NotFoundError                     no app, function, call or container by that name
        FileNotFoundError               (builtin FileNotFoundError) no such file in a volume
      AlreadyExistsError
        FileExistsError                 (builtin FileExistsError) a file is in a place of a volume already
      AuthError
      PermissionDeniedError
      UnimplementedError                a feature that this version does not have yet
      ConnectionError                   (builtin ConnectionError) the server cannot be reached
        ConnectionLostError             the connection broke under a call
      VersionError                      client and server are of versions that do not understand each other
      ProtocolError                     a frame that is oversized, malformed or out of place
      TimeoutError                      (builtin TimeoutError)
        FunctionTimeoutError            an attempt ran longer than the function's `timeout`
        StartupTimeoutError             imports and enter hooks ran longer than `startup_timeout`
        OutputExpiredError              the result is older than the time results are kept
      SerializationError                a value that cannot be pickled
        DeserializationError            a value that cannot be rebuilt here
      RemoteError                       what happened in the container
        ExecutionError                  an exception whose class cannot be rebuilt here
        ContainerCrashedError           the container ended by its own doing
          OutOfMemoryError              the kernel ended it at its memory limit
          DiskQuotaError                it wrote more than its disk quota
        ContainerStartError             the container could not be made, or its import or enter hook failed
        InputCancelledError             the input was cancelled
        ImageBuildError                 a step of an image failed
      ContentError                      a file, directory or archive that cannot be taken in or handed out
        CorruptedError                  an object, tree or archive that is truncated, or not what its digest says
      RegistryError                     an image registry failed, or its answer is not what its protocol says
      ResourceExhaustedError            a request nothing here can hold, or a disk that is full
        OverloadedError                 the server has more work in memory than it may, and this was turned away
      InternalError                     a defect of farcall
    InputCancellation                   (BaseException) raised inside a cancelled input
    FarcallWarning                      (UserWarning)
      DeprecationError                  an old name; it works and says what to write instead
      AsyncUsageWarning                 a blocking call in a running event loop

Errors travel as their `code`. A code never changes its meaning; a peer that does not know a code rebuilds the nearest
base class it knows.
"""

import builtins
from typing import ClassVar


class FarcallError(Exception):
    """Base of all farcall errors. `str(error)` says what happened, to what, and what to do next."""

    code: ClassVar[str] = "error"


class InvalidError(FarcallError):
    """A wrong argument, declaration or use of the API."""

    code = "invalid"


class NotFoundError(FarcallError):
    """Nothing by that name or id; the message lists the nearest names where there are any."""

    code = "not-found"


class AlreadyExistsError(FarcallError):
    """Something by that name exists already."""

    code = "already-exists"


class ConflictError(InvalidError):
    """The object's state does not allow the operation."""

    code = "conflict"


class VolumeError(ConflictError, builtins.RuntimeError):
    """A volume cannot be committed or reloaded here and now; the message says what is in the way."""

    code = "volume"


class FileNotFoundError(NotFoundError, builtins.FileNotFoundError):
    """No such file in a volume."""

    code = "file-not-found"


class FileExistsError(AlreadyExistsError, builtins.FileExistsError):
    """A file is in the way, in a volume or where one is copied to."""

    code = "file-exists"


class AuthError(FarcallError):
    """The peer did not prove who it is."""

    code = "auth"


class PermissionDeniedError(FarcallError):
    """The peer is known, and may not do this."""

    code = "permission-denied"


class UnimplementedError(FarcallError):
    """The API has the name; this version of farcall cannot do it yet."""

    code = "unimplemented"


class ConnectionError(FarcallError, builtins.ConnectionError):
    """The server cannot be reached, or could not be started."""

    code = "connection"


class ConnectionLostError(ConnectionError):
    """The connection broke under a call. `may_have_run` says whether the call's code may have started."""

    code = "connection-lost"

    def __init__(self, message: str, *, may_have_run: bool = True) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run


class VersionError(FarcallError):
    """Client and server are of versions that do not understand each other."""

    code = "version"


class ProtocolError(FarcallError):
    """A frame that is oversized, malformed or out of place. The connection goes on after it unless framing is lost."""

    code = "protocol"


class TimeoutError(FarcallError, builtins.TimeoutError):
    """Something took longer than it was allowed to."""

    code = "timeout"


class FunctionTimeoutError(TimeoutError):
    """One attempt at an input ran longer than the function's `timeout` (seconds)."""

    code = "function-timeout"


class StartupTimeoutError(TimeoutError):
    """A container's imports and enter hooks ran longer than `startup_timeout` (seconds)."""

    code = "startup-timeout"


class OutputExpiredError(TimeoutError):
    """The result of a spawned call is older than the time results are kept."""

    code = "output-expired"


class SerializationError(FarcallError):
    """A value that cannot be pickled; the message names the offending part."""

    code = "serialization"


class DeserializationError(SerializationError):
    """A value that was pickled elsewhere and cannot be rebuilt in this process."""

    code = "deserialization"


class RemoteError(FarcallError):
    """Something went wrong in a container."""

    code = "remote"


class ExecutionError(RemoteError):
    """An exception in user code whose class cannot be imported or rebuilt here.

    `type_name` is the original type's qualified name; `traceback_text` the remote traceback.
    """

    code = "execution"

    def __init__(self, message: str, *, type_name: str = "", traceback_text: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback_text = traceback_text


class ContainerCrashedError(RemoteError):
    """The container ended by its own doing while this input ran: an exit code or a signal, which the message names."""

    code = "container-crashed"


class OutOfMemoryError(ContainerCrashedError):
    """The kernel ended the container at its memory limit; the message has limit and peak in MiB."""

    code = "out-of-memory"


class DiskQuotaError(ContainerCrashedError):
    """The container wrote more to its own disk than its `ephemeral_disk` allows."""

    code = "disk-quota"


class ContainerStartError(RemoteError):
    """The container could not be made, or its import or enter hook failed; the message carries that traceback."""

    code = "container-start"


class InputCancelledError(RemoteError):
    """The input was cancelled before it had a result."""

    code = "input-cancelled"


class ImageBuildError(RemoteError):
    """A step of an image failed. `step` is its title, `command` what was run, where something was; the message has both
    and the last lines that it printed: `last_lines` is that part of it."""

    code = "image-build"

    def __init__(self, message: str, *, step: str = "", command: str = "", last_lines: str = "") -> None:
        super().__init__(message)
        self.step = step
        self.command = command
        self.last_lines = last_lines


class ContentError(FarcallError):
    """A file, directory or archive that cannot be taken into the content store, or handed out of it as asked."""

    code = "content"


class CorruptedError(ContentError):
    """An object, a tree, an archive or a secret that is truncated or damaged, or that is not what its digest or key
    says."""

    code = "corrupted"


class RegistryError(FarcallError):
    """An image registry failed, limits how often it is asked, or answered what its protocol does not allow."""

    code = "registry"


class ResourceExhaustedError(FarcallError):
    """A request that nothing here can hold, or a full disk; the message says what there is."""

    code = "resource-exhausted"


class OverloadedError(ResourceExhaustedError):
    """The server has more work in memory than it may have; this input was turned away and has not run. Later it may be
    accepted; the message says whose work there is, and the bound."""

    code = "overloaded"


class InternalError(FarcallError):
    """A defect of farcall itself; the message says where its log is."""

    code = "internal"


class InputCancellation(BaseException):
    """Raised inside the user's function when its input is cancelled or timed out."""


class FarcallWarning(UserWarning):
    """Base of farcall's warnings."""


class DeprecationError(FarcallWarning):
    """An old name of the API was used. It works; the message says what to write instead."""


class AsyncUsageWarning(FarcallWarning):
    """A blocking call was made inside a running event loop; the message spells out the awaited form."""


def _tree(base: type[FarcallError]) -> dict[str, type[FarcallError]]:
    # A subclass without a code of its own travels as its base, and is not what the base's code stands for.
    found = {base.code: base} if "code" in vars(base) else {}
    for child in base.__subclasses__():
        found |= _tree(child)
    return found


def from_code(code: str, message: str) -> FarcallError:
    """The error that travelled as `code`. A code this version does not know becomes a `RemoteError` that names it."""
    error_type = _tree(FarcallError).get(code)
    if error_type is None:
        return RemoteError(f"{message} (error code {code!r})")
    return error_type(message)
