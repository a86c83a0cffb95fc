# Types for the compiled form of orders.py; nothing here changes what it does.
from exodus.commands.table cimport CommandTable
from exodus.plan.share cimport in_share, salt_of
from exodus.telemetry.counters cimport Telemetry

cdef class Orders:
    cdef public CommandTable table
    cdef public Telemetry telemetry
    cdef public object authority, journal, risks, canary, scripts, shadow_names, left_out, misfits
    cdef public Py_ssize_t epoch, rule, shadow_below, shadow_salt, canary_below, tag
    cdef public bint hold, picks, login_needed, scripts_unseen, shadow_scripts
    cdef public bint silence_covers_pushes

    cpdef bint sampled(self, Py_ssize_t db, bytes key)
    cpdef leave_out(self, bytes command, str why)
