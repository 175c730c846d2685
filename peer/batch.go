package peer

import (
	"context"
	"net"
	"net/http/httptrace"
)

// batchSize is how many bytes of a chunk have to be there for the goroutine
// that reads it to be woken. Over a link of 100 Mbit/s it is otherwise woken for
// each TLS record, a few thousand times per second on a node that receives at
// that rate, and the waking costs more than the bytes.
const batchSize = 64 << 10

// batch reads the body of one response in batches. The zero value does not.
type batch struct {
	conn net.Conn // the socket
	on   bool
}

// traced returns a context with which the request's connection becomes known
// to b.
func (b *batch) traced(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		b.conn = info.Conn
		if secured, ok := b.conn.(interface{ NetConn() net.Conn }); ok {
			b.conn = secured.NetConn()
		}
	}})
}

// expect says that left bytes of the body have not been read. What TLS and HTTP
// have read ahead of the reader, which is less than a batch, will not be on the
// socket any more, so the last two batches are read as they come.
func (b *batch) expect(left int64) {
	on := left > 2*batchSize
	if b.conn == nil || on == b.on {
		return
	}
	b.on = on
	if on {
		setLowWater(b.conn, batchSize)
	} else {
		setLowWater(b.conn, 1)
	}
}
