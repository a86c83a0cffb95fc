# Types for the compiled form of waiting.py; they do not change its behaviour.
cimport cython

from exodus.gateway.session.parts cimport SessionParts

cdef bytes _NOTHING

@cython.final
cdef class WaitingReplies:
    cdef public SessionParts parts
    cdef public object items  # a deque

    cdef bytes compare(self, object read, bytes raw, bytes frame, bint failed)
    cdef bytes _decide(self, object read)
    cpdef pass_on(self)
    cpdef give_up(self)
