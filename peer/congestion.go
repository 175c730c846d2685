package peer

import (
	"fmt"
	"log/slog"
	"net"
)

// Values of Config.Congestion that are no kernel's names.
const (
	CongestionAuto   = "auto"
	CongestionSystem = "system"
)

// chosen returns TCP's congestion control for what a listener's connections send, of
// CongestionAuto or a name, and the system's; "" leaves that.
//
// Chunks come in bursts over many connections that take turns. Cubic ends slow start
// when a round trip gets longer (HyStart), which on a link that others share says
// nothing of this connection, and a connection that begins again after a rest goes on
// slowly from there. So auto has reno in its place, which every Linux has and lets
// everybody choose; whoever has set something else has a reason.
func chosen(wanted, system string) string {
	switch {
	case wanted == CongestionAuto && system == "cubic":
		return "reno"
	case wanted == CongestionAuto, wanted == system:
		return ""
	}
	return wanted
}

// choose sets the congestion control of the connections that ln will accept. It fails
// only if a name was asked for that the kernel does not have or does not let us have.
func choose(ln *net.TCPListener, wanted string, log *slog.Logger) error {
	if wanted == "" || wanted == CongestionSystem {
		return nil
	}
	system, err := congestion(ln)
	if err == nil {
		name := chosen(wanted, system)
		if name == "" {
			return nil
		}
		if err = setCongestion(ln, name); err == nil {
			log.Debug("TCP's congestion control is chosen", "congestion", name, "system", system)
			return nil
		}
	}
	if wanted == CongestionAuto {
		log.Debug("TCP's congestion control is the system's", "error", err)
		return nil
	}
	return fmt.Errorf("peer.congestion: %q cannot be had, set it to %s or %s: %w", wanted, CongestionAuto, CongestionSystem, err)
}
