# Types for the compiled form of session.py; nothing here changes what it does.
cimport cython

from exodus.commands.table cimport Command
from exodus.gateway.orders cimport Orders
from exodus.resp.scanner cimport Reply, ReplyScanner, Request, RequestScanner

cdef object _OFF, _SAMPLE, _ALL
cdef Py_ssize_t _SHADOW_BYTES_MAX, _STREAM_BYTES, _TRANSACTION_BYTES, _QUEUE_SLACK, _CURSOR_HEAD_BYTES, _ALL_NAMES
cdef bint _AS_SOURCE
cdef int _ON, _QUIET, _SKIP, _HELLO_WORDS, _CLIENT_REPLY_WORDS, _OWN_ID, _LOGIN
cdef bytes _NOTHING, _QUEUED
cdef list _NO_KEYS, _NOWHERE_ELSE

cdef class Transaction:
    cdef public list items, raw, unseen, unknown, texts, session
    cdef public Py_ssize_t raw_bytes, count
    cdef public bint writes, whole
    cdef public object unreadable

@cython.no_gc  # never part of a cycle
@cython.freelist(256)
cdef class Pending:
    cdef public Command command
    cdef public double since
    cdef public Py_ssize_t size, expected
    cdef public int quiet
    cdef public bytes key, raw, substitute, rewritten, text
    cdef public list keys, elsewhere, names, unknown
    cdef public bint write, queued, swallow, shadowed, confirms, odd, whole, cursor
    cdef public object select, barrier, block, deadline, canary, unseen
    cdef public Transaction transaction

    cdef begin(self, Command command, double since, Py_ssize_t size)

@cython.locals(made=Pending)
cdef Pending _pending(Command command, double since, Py_ssize_t size)

cdef class PendingQueue:
    cdef list _items
    cdef Py_ssize_t _first
    cdef public Py_ssize_t count

    cpdef push(self, Pending pending)
    @cython.locals(first=Py_ssize_t, pending=Pending)
    cpdef Pending pop(self)
    cpdef put_back(self, Pending pending)
    cpdef clear(self)

cdef class Session:
    cdef dict __dict__  # for what the rarer parts add
    cdef public object out, client_id, opaque, unknown_state, replay
    cdef public set channels
    cdef public PendingQueue pending
    cdef public Orders orders
    cdef public Py_ssize_t db, protocol, writes_in_flight, tag, turn
    cdef public bytes name
    cdef public bint watching, watch_lost, in_multi, streaming_reply, tracking, frozen
    cdef public Transaction transaction
    cdef RequestScanner _requests
    cdef ReplyScanner _replies
    cdef bytes _unsent, _reply_unsent, _injected
    cdef list _backlog, _barriers
    cdef object _waiting  # a deque
    cdef Py_ssize_t _backlog_bytes, _edits, _reply_sent, _protocol_admitted, _selects_in_flight, _db_admitted
    cdef bint _streaming, _held, _silent, _skip_next, _quiet_asked, _spoken, _login_waits, _unblocking, _unread, _suspend_fence, _closing, _accepted, _client_id_asked

    @cython.locals(buffered=bytes, already=Py_ssize_t, start=Py_ssize_t, sent=Py_ssize_t, end=Py_ssize_t, requests=list, intents=list,
                   request=Request, command=Command, found=Pending, holding=bint, limit=Py_ssize_t)
    cpdef from_client(self, bytes data, double now)
    cdef _forward(self, bytes buffered, Py_ssize_t sent, Py_ssize_t end, list intents)
    @cython.locals(command=Command)
    cdef bint _must_hold(self, list args) except -1
    @cython.locals(certain=bint)
    cdef bint _must_wait(self, Command command, list args) except -1
    @cython.locals(args=list, orders=Orders, pending=Pending, transaction=Transaction)
    cdef Pending _admit(self, Command command, Request request, bytes buffered, Py_ssize_t start, Py_ssize_t end, double now)
    @cython.locals(orders=Orders, keys=list)
    cdef _pick(self, Pending pending, list args, bytes raw)
    @cython.locals(db=Py_ssize_t, key=bytes)
    cdef _add_keys(self, Pending pending, list intents)
    @cython.locals(reply=Reply, marks=list, buffered=bytes, passed=list, at=Py_ssize_t, end=Py_ssize_t, frame=bytes, silent=bint, head=Pending)
    cpdef from_server(self, bytes data, double now)
    cdef _after_replies(self, list marks, double now)
    @cython.locals(pending=Pending, command=Command, failed=bint, refused=bint, error=bytes)
    cdef bytes _answered(self, Reply reply, double now, list marks, bytes frame)
    @cython.locals(transaction=Transaction, db=Py_ssize_t, orders=Orders)
    cdef _mark(self, Pending pending, Reply reply, list marks, object done)
