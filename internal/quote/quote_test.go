// SPDX-License-Identifier: Apache-2.0

package quote

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for _, test := range []struct{ in, want string }{
		{"plain text, with ümlauts and 漢字", "plain text, with ümlauts and 漢字"},
		{"red\x1b[31m", `red\x1b[31m`},
		{"forged\n  ok     All is well.\r", `forged\n  ok     All is well.\r`},
		{"\u202egnp.exe", `\u202egnp.exe`},
		{"zero\u200bwidth", `zero\u200bwidth`},
		{"c1\u009b31m", `c1\u009b31m`},
		{"bad\xff", `bad\xff`},
		{"", ""},
		{strings.Repeat("ä", MaxLine+1), strings.Repeat("ä", MaxLine) + "..."},
	} {
		if got := Line(test.in); got != test.want {
			t.Errorf("Line(%q) = %q, want %q", test.in, got, test.want)
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	if got := Text(strings.Repeat("x", 200_000)); len(got) != Max+5 || !strings.HasSuffix(got, `"...`) {
		t.Errorf("%d bytes: %.20s", len(got), got)
	}
	if got := Text("a\nb"); got != `"a\nb"` {
		t.Error(got)
	}
	for in, want := range map[string]string{"gold": "gold", "a b": `"a b"`, "a\x1b": `"a\x1b"`} {
		if got := Name(in); got != want {
			t.Errorf("Name(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("a\x1b]0;title\x07\n\xf0\x28")
	f.Fuzz(func(t *testing.T, s string) {
		got := Line(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Line(%q) = %q", s, got)
		}
		if got != "" != (s != "") || len(got) > 10*MaxLine+3 {
			t.Errorf("Line of %d bytes has %d", len(s), len(got))
		}
	})
}
