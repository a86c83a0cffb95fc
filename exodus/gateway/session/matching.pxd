# Types for the compiled form of matching.py; they do not change its behaviour.
cimport cython

from exodus.commands.table cimport Command
from exodus.gateway.session.effects cimport Effects
from exodus.gateway.session.leg cimport SessionLeg, UnreadTraffic
from exodus.gateway.session.parts cimport SessionParts
from exodus.gateway.session.pending cimport Pending
from exodus.gateway.session.state cimport Prediction, SessionState
from exodus.gateway.session.transaction cimport Transaction
from exodus.gateway.session.waiting cimport WaitingReplies
from exodus.resp.scanner cimport Reply

cdef object _OFF
cdef Py_ssize_t _ALL_NAMES
cdef int _ON, _OWN_LOGIN, _OWN_CLIENT_ID, _PUSH, _SIMPLE, _ERROR, _INTEGER, _BULK_ERROR
cdef bytes _NOTHING, _QUEUED

@cython.final
cdef class Matching:
    cdef public SessionParts parts
    cdef public Effects effects
    cdef public WaitingReplies waiting
    cdef public Pending unblocked

    @cython.locals(parts=SessionParts, state=SessionState, leg=SessionLeg, pending=Pending,
                   command=Command, failed=bint, error=bytes)
    cdef bytes answered(self, Reply reply, double now, list marks, bytes frame)
    @cython.locals(parts=SessionParts, command=Command, refused=bint)
    cdef bytes _take_over(self, Pending pending, Reply reply, list marks, bytes frame, object done,
                          bint failed)
    @cython.locals(parts=SessionParts, leg=SessionLeg)
    cdef bint _was_own(self, Pending pending, Reply reply, double now) except -1
    cdef _end_skip(self)
    @cython.locals(parts=SessionParts, head=Pending)
    cdef bytes _pushed(self, Reply reply, double now, bytes frame)
    @cython.locals(parts=SessionParts, head=Pending)
    cdef bint _left_by_server(self, Reply reply, bytes frame) except -1
    @cython.locals(parts=SessionParts, state=SessionState, names=list)
    cdef bint _confirmed_one(self, Pending pending, Reply reply) except -1
    @cython.locals(parts=SessionParts, unread=UnreadTraffic)
    cdef bytes _unsolicited(self, Reply reply, bytes frame, bint failed)
    @cython.locals(parts=SessionParts, transaction=Transaction)
    cdef _parsed(self, Pending pending, bytes frame)
    cdef bytes _as_cluster(self, Pending pending, Reply reply, bytes frame, bint failed)
    cdef bytes mark_cursor(self, bytes frame)
    cdef _note_script(self, Pending pending)
    @cython.locals(parts=SessionParts, state=SessionState)
    cdef _apply(self, Pending pending, Reply reply, bint failed, object done)
    @cython.locals(parts=SessionParts, predicted=Prediction)
    cdef _apply_select(self, Pending pending, bint failed)
    @cython.locals(parts=SessionParts)
    cdef _apply_reset(self)
    @cython.locals(state=SessionState)
    cdef _apply_exec(self, Pending pending, object done, bint failed)
    cdef _count_misfits(self, list found)
    @cython.locals(parts=SessionParts, state=SessionState)
    cdef _apply_transaction(self, Transaction transaction, object done)
