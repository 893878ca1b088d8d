"""Flash: reading bundles past the page cache, and what the device that holds them can do."""

from .device import Device, device_of, probe, stored_devices
from .file import ALIGNMENT, FlashFile, aligned

__all__ = ["ALIGNMENT", "Device", "FlashFile", "aligned", "device_of", "probe", "stored_devices"]
