package door

import (
	"net/http"
	"slices"
	"testing"
)

// Who gives way: of the client that has most idle connections the oldest, and
// nobody who has a request.
func TestWhoGivesWay(t *testing.T) {
	t.Parallel()
	w := newCrowd(5)
	names := make(map[*conn]string)
	enter := func(client, name string) (*conn, string, bool) {
		c := &conn{client: client, crowd: w}
		names[c] = name
		gone, ok := w.enter(c)
		return c, names[gone], ok
	}
	honest, _, _ := enter("10.0.0.1", "honest")
	busy, _, _ := enter("10.0.0.2", "busy")
	w.note(busy, http.StateActive)
	var gave []string
	for _, name := range []string{"b1", "b2", "b3", "b4", "b5"} {
		_, gone, ok := enter("10.0.0.2", name)
		if !ok {
			t.Fatalf("no room for %s", name)
		}
		gave = append(gave, gone)
	}
	if want := []string{"", "", "", "b1", "b2"}; !slices.Equal(gave, want) {
		t.Errorf("%q gave way, want %q", gave, want)
	}
	// The one that was busy is the youngest now.
	w.note(busy, http.StateIdle)
	if _, gone, _ := enter("10.0.0.3", "c1"); gone != "b3" {
		t.Errorf("%s gave way, want b3", gone)
	}
	// As many each: the oldest of all.
	w.leave(busy)
	if _, gone, _ := enter("10.0.0.3", "c2"); gone != "" {
		t.Errorf("%s gave way, although there was room", gone)
	}
	w.leave(honest)
	w.note(honest, http.StateIdle) // too late: it has left
	if all, idle := w.count(); all != 4 || idle != 4 {
		t.Errorf("%d connections, %d idle", all, idle)
	}
	for c := range names {
		w.note(c, http.StateActive)
	}
	if all, idle := w.count(); all != 4 || idle != 0 {
		t.Errorf("%d connections, %d idle, all busy", all, idle)
	}
	if enter("10.0.0.1", "in"); w.most != 5 {
		t.Error("no room")
	}
	for c := range w.all {
		w.note(c, http.StateHijacked)
	}
	if _, gone, ok := enter("10.0.0.4", "late"); ok {
		t.Errorf("let in for %q, although all have a request", gone)
	}
}
