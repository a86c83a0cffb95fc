# Types for the compiled form of parts.py; they do not change its behaviour.
cimport cython

from exodus.gateway.orders cimport Orders
from exodus.gateway.session.buffers cimport ReplyBuffer, RequestBuffer
from exodus.gateway.session.leg cimport SessionLeg, UnreadTraffic
from exodus.gateway.session.pending cimport Pending, PendingQueue
from exodus.gateway.session.state cimport Prediction, SessionState

cdef object _ALL
cdef int _ON

@cython.final
cdef class SessionParts:
    cdef public object out
    cdef public Orders orders
    cdef public SessionState state
    cdef public Prediction predicted
    cdef public PendingQueue pending
    cdef public RequestBuffer requests
    cdef public ReplyBuffer replies
    cdef public SessionLeg leg
    cdef public UnreadTraffic unread

    cpdef bint is_stranger(self)
    @cython.locals(orders=Orders)
    cpdef open_gap(self, str why)
    @cython.locals(unread=UnreadTraffic)
    cpdef lose_count(self, str why)
    @cython.locals(unread=UnreadTraffic, replies=ReplyBuffer, pending=Pending)
    cpdef refuse_all(self)
    cpdef expect(self, Pending pending)
    cpdef bint is_edited(self, Pending pending)
    @cython.locals(pending=Pending)
    cpdef expect_own_reply(self, double now, Py_ssize_t what)
