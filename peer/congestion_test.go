//go:build linux

package peer

import (
	"log/slog"
	"net"
	"strings"
	"testing"
)

func TestChosen(t *testing.T) {
	for _, tt := range []struct{ wanted, system, want string }{
		{"auto", "cubic", "reno"},
		{"auto", "bbr", ""},
		{"auto", "reno", ""},
		{"cubic", "bbr", "cubic"},
		{"cubic", "cubic", ""},
	} {
		if got := chosen(tt.wanted, tt.system); got != tt.want {
			t.Errorf("%q where the system has %q: %q, want %q", tt.wanted, tt.system, got, tt.want)
		}
	}
}

// TestCongestion: what the listener accepts sends as it was asked for.
func TestCongestion(t *testing.T) {
	for _, tt := range []struct{ has, wanted, want string }{
		{"cubic", "auto", "reno"},
		{"cubic", "system", "cubic"},
		{"reno", "cubic", "cubic"},
		{"reno", "auto", "reno"},
	} {
		ln, err := listen("127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if err := setCongestion(ln, tt.has); err != nil { // in the system's place
			t.Fatal(err)
		}
		if err := choose(ln, tt.wanted, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		conn, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got, err := congestion(conn); err != nil || got != tt.want {
			t.Errorf("%s, where there is %s: it sends with %q (%v), want %q", tt.wanted, tt.has, got, err, tt.want)
		}
	}
}

// TestUnknownCongestion: a name that the kernel does not know is an error that says
// what it has.
func TestUnknownCongestion(t *testing.T) {
	ln, err := listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = choose(ln, "nosuch", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), `peer.congestion: "nosuch" cannot be had`) || !strings.Contains(err.Error(), "reno") {
		t.Errorf("error %v", err)
	}
}
