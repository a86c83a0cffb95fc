# Types for the compiled form of state.py; they do not change its behaviour.
cimport cython

from exodus.gateway.session.transaction cimport Transaction

@cython.final
cdef class SessionState:
    cdef public Py_ssize_t db, protocol, channel_bytes
    cdef public bytes name
    cdef public bint watching, watch_lost, in_multi, tracking, tracking_redirected
    cdef public set channels
    cdef public dict replay
    cdef public object unknown_why

    cpdef join(self, bytes channel)
    cpdef leave(self, bytes channel)
    cpdef reset(self)

@cython.final
cdef class Prediction:
    cdef public Py_ssize_t db, protocol, selects_in_flight
    cdef public Transaction transaction
