# Types for the compiled form of counters.py; nothing here changes what it does.
cimport cython

from exodus.commands.table cimport Command
from exodus.telemetry.histogram cimport Histogram

cdef Py_ssize_t _WAITING_MAX, _DISTINCT_MASK, _HOT_MASK, _PREFIX_BYTES_MAX, _KEY_BYTES_MAX

cdef class CommandCounters:
    cdef public Py_ssize_t calls, request_bytes, reply_bytes
    cdef public bint write, known
    cdef public dict errors
    cdef public Histogram latency_us, request_sizes, reply_sizes

cdef class PrefixCounters:
    cdef public Py_ssize_t calls, writes, errors, request_bytes, reply_bytes
    cdef public Histogram latency_us

cdef class Telemetry:
    cdef public dict commands, prefixes
    cdef public object keys
    cdef public Py_ssize_t calls, errors
    cdef dict _of_command, _of_prefix
    cdef list _hot, _distinct
    cdef Py_ssize_t _turn

    @cython.locals(counters=CommandCounters, prefix=PrefixCounters, view="const unsigned char*",
                   head=bytes, stop=Py_ssize_t, end=Py_ssize_t, micros=Py_ssize_t)
    cpdef observe(self, Command command, bytes key, double seconds, Py_ssize_t request_bytes,
                  Py_ssize_t reply_bytes, bytes error)
    cdef _take_in(self)
    cdef CommandCounters _counters(self, Command command)
    cdef PrefixCounters _prefix(self, bytes raw)
