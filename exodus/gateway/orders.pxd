# Types for the compiled form of orders.py; nothing here changes what it does.
from exodus.commands.table cimport CommandTable
from exodus.telemetry.counters cimport Telemetry

cdef class Orders:
    cdef public CommandTable table
    cdef public Telemetry telemetry
    cdef public object authority, journal, risks
    cdef public Py_ssize_t epoch, shadow_below, shadow_salt
    cdef public bint hold

    cpdef bint sampled(self, bytes key)
