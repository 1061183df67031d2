"""The exceptions a caller may want to catch. Each is also the built-in exception that fits."""


class VisionWrapperError(Exception):
    """Base of every error this library raises on purpose."""


class UnknownNameError(VisionWrapperError, KeyError, ValueError):
    """A name that a table does not hold: an unknown model, data set, augmentation, schedule, recipe or setting."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0])


class SettingError(VisionWrapperError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class DataError(VisionWrapperError, ValueError):
    """Images, labels or classes that are not what they should be."""


class DataNotFoundError(VisionWrapperError, FileNotFoundError):
    """A data set, folder or file that is not there, or that cannot be downloaded."""


class NonFiniteLossError(VisionWrapperError, ArithmeticError):
    """The training loss became NaN or infinite."""


class NoLearningRateError(SettingError):
    """The LR finder, which a recipe asks for its highest rate, has no suggestion."""


class FileWriteError(VisionWrapperError, OSError):
    """A file could not be written (no room, no permission); what was there before is unharmed."""


class CheckpointError(VisionWrapperError, ValueError):
    """A checkpoint or classifier file that cannot be used (the subclasses say why), or cannot keep a value."""


class DamagedFileError(CheckpointError):
    """Truncated, altered, or never a file of this library."""


class NewerFormatError(CheckpointError):
    """Written by a newer version of the library."""


class OtherModelError(CheckpointError):
    """The weights belong to another architecture or number of classes, or the state to another optimizer."""


class OtherRunError(CheckpointError):
    """The checkpoint or run folder belongs to a run with other settings, or another process is working in it."""


class MissingPackageError(VisionWrapperError, ImportError):
    """An optional package is not installed; the message has the command that installs it."""


class DeviceMemoryError(VisionWrapperError, RuntimeError):
    """The device's memory did not suffice; the message has the batch size to try next."""


class WorkerError(VisionWrapperError, RuntimeError):
    """A process that loads images ended before its time; the message says how to go on."""


class ProcessError(VisionWrapperError, RuntimeError):
    """The main one of the processes that train together could not do its part; the message has its error."""
