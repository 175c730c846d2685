package cache

import "testing"

func TestAmount(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text, again string // again is "" if text is refused
		of          int64  // of 1000
	}{
		{"80%", "80%", 800},
		{" 12.5 %", "12.5%", 125},
		{"100%", "100%", 1000},
		{"200GiB", "200GiB", 200 << 30},
		{"500 MB", "500000000", 500_000_000},
		{"4096", "4KiB", 4096},
		{"0%", "", 0}, {"101%", "", 0}, {"-1%", "", 0}, {"NaN%", "", 0}, {"%", "", 0},
		{"0", "", 0}, {"-5GiB", "", 0}, {"lots", "", 0}, {"9999999999TiB", "", 0},
	} {
		var a Amount
		err := a.UnmarshalText([]byte(tt.text))
		if (err != nil) != (tt.again == "") {
			t.Errorf("%q: %v", tt.text, err)
			continue
		}
		if err == nil && (a.String() != tt.again || a.Of(1000) != tt.of) {
			t.Errorf("%q is %q, and %d of 1000; want %q and %d", tt.text, a, a.Of(1000), tt.again, tt.of)
		}
	}
}
