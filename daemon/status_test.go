package daemon

import (
	"maps"
	"testing"

	"github.com/shoal-project/shoal/daemon/pull"
	"github.com/shoal-project/shoal/proto"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	self := proto.Member{ID: "self", Zone: "eu/berlin", Roles: proto.RoleDaemon}
	got := classify(self, []proto.Member{
		self,
		{ID: "neighbour", Zone: "eu/berlin", Roles: proto.RoleDaemon},
		{ID: "rack", Zone: "eu/berlin/r1", Roles: proto.RoleDaemon},
		{ID: "far", Zone: "us", Roles: proto.RoleDaemon},
		{ID: "nowhere", Roles: proto.RoleDaemon},
		{ID: "seed", Zone: "eu/berlin", Roles: proto.RoleScheduler},
		{ID: "both", Zone: "us", Roles: proto.RoleDaemon | proto.RoleScheduler},
	})
	want := map[string]pull.Class{
		"self": pull.ClassZone, "neighbour": pull.ClassZone, "rack": pull.ClassFar, "far": pull.ClassFar,
		"nowhere": pull.ClassFar, "seed": pull.ClassSeed, "both": pull.ClassSeed,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	d := &Daemon{classes: got}
	if c := d.class("seed"); c != pull.ClassSeed {
		t.Errorf("the seed is %d", c)
	}
	if c := d.class("gone"); c != pull.ClassFar {
		t.Errorf("a member that has left is %d, want far", c)
	}
}
