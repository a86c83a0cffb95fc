# Types for the compiled form of decode.py; nothing here changes what it does.
cimport cython

cdef Py_ssize_t _FOOTER_BYTES, _ID_BYTES, _LZF_RATIO_MAX
cdef int _SET, _HASH, _ZSET, _INTSET, _ZSET_ZIPLIST, _HASH_ZIPLIST, _QUICKLIST, _STREAM
cdef int _HASH_LISTPACK, _ZSET_LISTPACK, _QUICKLIST_2, _STREAM_2, _SET_LISTPACK, _STREAM_3
cdef int _PLAIN_NODE, _DELETED, _SAME_FIELDS
cdef dict _KINDS

cpdef bytes kind_of(bytes payload)

@cython.locals(found=list, at=Py_ssize_t, read=bint)
cpdef list apart(list kinds, list ours, list theirs)

@cython.locals(size=Py_ssize_t, kind=bytes, ours=list, theirs=list)
cpdef bint same_value(bytes one, bytes other) except -1

cpdef decode(bytes payload)

@cython.locals(number=int, body=_Body, found=list)
cdef list _parts(bytes payload)

@cython.locals(entries=list, at=Py_ssize_t)
cdef _value(bytes kind, list parts)

@cython.locals(nodes=list, groups=list, pending=dict, consumers=list, mine=list, first_id=bytes,
               name=bytes, raw=bytes, consumer=bytes)
cdef list _stream(int number, _Body body)

cdef tuple _halves(bytes raw)

@cython.locals(found=list, fields=list, told=list, at=Py_ssize_t, count=Py_ssize_t,
               number=Py_ssize_t, size=Py_ssize_t, flags=Py_ssize_t)
cdef list _entries(object ms, object sequence, list packed)

cdef object _number(object value)

cdef class _Body:
    cdef bytes _data
    cdef const unsigned char* _view
    cdef Py_ssize_t _at, _end

    cdef end(self)
    @cython.locals(found=bytes)
    cdef bytes raw(self, Py_ssize_t size)
    cdef skip(self, Py_ssize_t size)
    cdef score(self)
    @cython.locals(view="const unsigned char*", at=Py_ssize_t, first=int, how=int, size=Py_ssize_t,
                   number=Py_ssize_t, value="unsigned long long")
    cdef length(self)
    cdef bytes stream_id(self)
    @cython.locals(view="const unsigned char*", at=Py_ssize_t, first=int)
    cdef bytes text(self)

@cython.locals(view="const unsigned char*")
cdef bytes _cut(bytes data, Py_ssize_t at, Py_ssize_t size, Py_ssize_t end)

@cython.locals(view="const unsigned char*", value="long long", number=Py_ssize_t)
cdef long long _signed(bytes data, Py_ssize_t at, Py_ssize_t size) except? -1

@cython.locals(made=bytearray, view="const unsigned char*", out="unsigned char*", at=Py_ssize_t,
               to=Py_ssize_t, end=Py_ssize_t, control=int, count=Py_ssize_t, number=Py_ssize_t,
               start=Py_ssize_t)
cdef bytes _unpacked(bytes packed, Py_ssize_t size)

@cython.locals(size=Py_ssize_t, at=Py_ssize_t)
cdef list _intset(bytes data)

@cython.locals(found=list, view="const unsigned char*", at=Py_ssize_t, last=Py_ssize_t, first=int,
               size=Py_ssize_t)
cdef list _ziplist(bytes data)

@cython.locals(found=list, view="const unsigned char*", at=Py_ssize_t, last=Py_ssize_t, first=int,
               size=Py_ssize_t, head=Py_ssize_t, value="long long", number=bint)
cdef list _listpack(bytes data, bint numbers)
