# Types for the compiled form of machine.py; they do not change its behaviour.
cimport cython

from exodus.commands.table cimport Command, CommandTable
from exodus.gateway.orders cimport Orders
from exodus.gateway.session.admission cimport Admission
from exodus.gateway.session.buffers cimport ReplyBuffer, RequestBuffer
from exodus.gateway.session.effects cimport Effects
from exodus.gateway.session.leg cimport SessionLeg, UnreadTraffic
from exodus.gateway.session.matching cimport Matching
from exodus.gateway.session.parts cimport SessionParts
from exodus.gateway.session.pending cimport Pending, PendingQueue
from exodus.gateway.session.state cimport SessionState
from exodus.gateway.session.transaction cimport Transaction
from exodus.gateway.session.waiting cimport WaitingReplies
from exodus.resp.scanner cimport Reply, ReplyScanner, Request, RequestScanner

cdef object _OFF
cdef Py_ssize_t _SHADOW_BYTES_MAX, _STREAM_BYTES, _TRANSACTION_BYTES, _CURSOR_HEAD_BYTES
cdef Py_ssize_t _SUBSCRIPTION_BYTES
cdef int _ON
cdef bytes _NOTHING
cdef int _ERROR
cdef tuple _REDIRECTS

cdef bint _may_redirect(bytes data) except -1

@cython.final
cdef class Session:
    cdef public object out
    cdef public SessionParts parts
    cdef public SessionState state
    cdef public PendingQueue pending
    cdef public RequestBuffer requests
    cdef public Effects effects
    cdef public WaitingReplies waiting
    cdef public Admission admission
    cdef public Matching matching

    @cython.locals(buffer=RequestBuffer, parts=SessionParts, admission=Admission,
                   table=CommandTable, buffered=bytes, already=Py_ssize_t, start=Py_ssize_t,
                   end=Py_ssize_t, begin=Py_ssize_t, stop=Py_ssize_t, requests=list,
                   request=Request, command=Command, found=Pending, holding=bint, may_wait=bint)
    cpdef from_client(self, bytes data, double now)
    @cython.locals(buffer=RequestBuffer, parts=SessionParts, scanner=RequestScanner,
                   limit=Py_ssize_t, args=list, may_hold=bint)
    cdef _take_rest(self, bytes buffered, Py_ssize_t start, bint holding)
    @cython.locals(buffer=RequestBuffer, unread=UnreadTraffic)
    cdef _refuse_unread(self, bytes buffered, Py_ssize_t start)
    @cython.locals(buffer=RequestBuffer, effects=Effects, sent=Py_ssize_t, whole=bint)
    cdef _forward(self, bytes buffered, Py_ssize_t end)
    cdef _send_prelude(self, bytes buffered, Py_ssize_t start)
    @cython.locals(buffer=RequestBuffer)
    cdef _send_instead(self, Pending found, bytes buffered, Py_ssize_t start, Py_ssize_t end)
    cdef _hold_from(self, bytes buffered, Py_ssize_t start)
    cdef _hold(self, bytes rest)
    cdef _keep(self, bytes data)
    @cython.locals(parts=SessionParts, buffer=ReplyBuffer, unread=UnreadTraffic, reply=Reply,
                   marks=list)
    cpdef from_server(self, bytes data, double now)
    @cython.locals(buffer=ReplyBuffer, reply=Reply, found=list, buffered=bytes, passed=list,
                   at=Py_ssize_t, end=Py_ssize_t, frame=bytes, silent=bint, whole=bytes,
                   cluster=bint, left=bint, unchanged=bint)
    cdef _edit(self, bytes data, double now, list marks)
    cdef bint _kept_whole(self, int first, Py_ssize_t unfinished_bytes) except -1
    @cython.locals(asked=Pending, by_server=bint)
    cdef bytes _redirect(self, bytes head)
    @cython.locals(buffer=ReplyBuffer, reply=Reply, scanner=ReplyScanner, end=Py_ssize_t,
                   partial=Py_ssize_t)
    cdef _relay(self, bytes buffered, list found, double now, list marks)
    @cython.locals(buffer=ReplyBuffer, pending=PendingQueue, reply=Reply, at=Py_ssize_t,
                   end=Py_ssize_t, whole=Py_ssize_t, copied=bint)
    cdef _copy(self, bytes buffered, list found, double now, list marks)
    @cython.locals(buffer=ReplyBuffer, head=Pending, whole=bint)
    cdef bytes _pass_in_part(self, bytes rest, list passed)
    @cython.locals(buffer=ReplyBuffer, head=Pending)
    cdef bint _may_pass_in_part(self, Py_ssize_t unfinished_bytes) except -1
    cpdef thaw(self, double now)
