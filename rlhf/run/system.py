"""What a run takes of its machine: memory of device and process, load of the processors."""

import os

_GB = 1e9


def system_metrics() -> dict[str, float]:
    """`perf/device_gb` (most of any device so far, where the backend says), `perf/host_gb`, `perf/host_load`.

    Reading them takes microseconds and waits for no device.
    """
    import jax  # here, so that reading a run directory does not start a backend

    found = {}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        found["perf/device_gb"] = max(peaks) / _GB
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            found["perf/host_gb"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _GB
        found["perf/host_load"] = os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, ValueError, IndexError):
        pass  # no Linux: nothing that is worth another library
    return found
