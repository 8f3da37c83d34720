// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// reviewer is an API server that knows the tokens "known-...", and lets
// "known-good" get /metrics.
type reviewer struct {
	*fake.Clientset
	questions int
	down      bool
}

func newReviewer() *reviewer {
	r := &reviewer{Clientset: fake.NewClientset()}
	r.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r.questions++
		if r.down {
			return true, nil, errors.New("no API server")
		}
		review := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		review.Status.Authenticated = strings.HasPrefix(review.Spec.Token, "known-")
		review.Status.User.Username = review.Spec.Token
		return true, review, nil
	})
	r.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := review.Spec.NonResourceAttributes
		review.Status.Allowed = review.Spec.User == "known-good" && at.Verb == "get" && at.Path == "/metrics"
		return true, review, nil
	})
	return r
}

func TestAuthorized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newReviewer()
		h := Authorized(api, "/metrics", hello)
		get := func(authorization, path string) int {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			if authorization != "" {
				r.Header.Set("Authorization", authorization)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if (w.Code == 200) != (w.Body.String() == "hello") {
				t.Errorf("%d with body %q", w.Code, w.Body)
			}
			return w.Code
		}
		ask := func(authorization, path string, want int) {
			t.Helper()
			if got := get(authorization, path); got != want {
				t.Errorf("%q for %s: %d, want %d", authorization, path, got, want)
			}
		}
		ask("", "/metrics", 401)
		ask("Basic YTpi", "/metrics", 401)
		ask("Bearer ", "/metrics", 401)
		if api.questions != 0 {
			t.Errorf("%d questions without a token", api.questions)
		}
		ask("Bearer unknown", "/metrics", 401)
		ask("Bearer known-other", "/metrics", 403)
		ask("Bearer known-other", "/healthz", 403) // which the API server would allow by itself
		ask("Bearer known-good", "/metrics", 200)
		ask("Bearer known-good", "/healthz", 200)
		before := api.questions
		for range 100 {
			get("Bearer known-good", "/metrics")
			get("Bearer known-other", "/metrics")
			get("", "/metrics")
		}
		if api.questions != before {
			t.Errorf("%d questions about what is known", api.questions-before)
		}
		api.down = true
		ask("Bearer known-good", "/metrics", 200) // still believed
		ask("Bearer known-new", "/metrics", 503)
		if got := api.questions - before; got != 1 {
			t.Errorf("%d questions for a known and an unknown token, want 1", got)
		}
		time.Sleep(2 * rememberYes)
		ask("Bearer known-good", "/metrics", 503)
		api.down = false
		ask("Bearer known-good", "/metrics", 200)
	})
}

// Guessed tokens do not flood the API server, fill the memory, or keep out who was
// let in before.
func TestGuesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := newReviewer()
		a := authorized(api, "/metrics")
		if got := a.ask(t.Context(), "known-good"); got != 200 {
			t.Fatalf("status %d", got)
		}
		time.Sleep(rememberYes) // until it is asked about again
		before, limited := api.questions, 0
		for i := range 1000 {
			if a.ask(t.Context(), "guess-"+strconv.Itoa(i)) == http.StatusTooManyRequests {
				limited++
			}
		}
		if questions := api.questions - before; questions > 100 || limited < 900 {
			t.Errorf("1,000 guesses: %d questions to the API server, %d put off", questions, limited)
		}
		if got := a.ask(t.Context(), "known-good"); got != 200 {
			t.Errorf("who was let in before gets %d", got)
		}
		for i := range 2 * remembered {
			time.Sleep(time.Second / asked)
			a.ask(t.Context(), "more-"+strconv.Itoa(i))
		}
		if len(a.answers) > remembered {
			t.Errorf("%d answers are kept", len(a.answers))
		}
	})
}
