package sim

// A queue is a FIFO in a ring. What is put in must not be due before what was
// put in earlier, so that its head is always what is due first; hence one queue
// per kind of delay, and no heap.
type queue[T any] struct {
	ring []T
	head int
	n    int
}

func (q *queue[T]) put(x T) {
	if q.n == len(q.ring) {
		ring := make([]T, max(16, 2*len(q.ring)))
		for i := range q.n {
			ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
		}
		q.ring, q.head = ring, 0
	}
	q.ring[(q.head+q.n)&(len(q.ring)-1)] = x
	q.n++
}

// first returns the head, or nil if the queue is empty. It is good until the
// next put or take.
func (q *queue[T]) first() *T {
	if q.n == 0 {
		return nil
	}
	return &q.ring[q.head]
}

func (q *queue[T]) take() T {
	x := q.ring[q.head]
	var zero T
	q.ring[q.head] = zero
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
	return x
}
