// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"

	"golang.org/x/time/rate"
)

// Reviews are the API server's two questions that Authorized asks. It needs the
// right to create tokenreviews and subjectaccessreviews.
type Reviews struct {
	Tokens authenticationclient.TokenReviewInterface
	Access authorizationclient.SubjectAccessReviewInterface
}

const (
	// An answer is believed for as long as rememberYes; a refusal, after which a
	// new role may be tried, rememberNo.
	rememberYes, rememberNo = time.Minute, 5 * time.Second
	// remembered bounds the answers that are kept.
	remembered = 1024
	// asked bounds the questions a second that unknown tokens can cause.
	asked = 5
	// reviewTimeout bounds one question.
	reviewTimeout = 5 * time.Second
)

// Authorized lets those alone pass who bring a bearer token that the API server
// knows, of somebody whom its authorizer allows the request's verb (get, head) on
// its path, as nonResourceURL. Others get 401 or 403; 429 while too many unknown
// tokens have come, 503 while the API server is not reached.
func Authorized(reviews Reviews, h http.Handler) http.Handler {
	a := &authorizer{reviews: reviews, now: time.Now, limit: rate.NewLimiter(asked, 4*asked), answers: map[question]answer{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "a bearer token is missing", http.StatusUnauthorized)
			return
		}
		if code := a.ask(r.Context(), token, strings.ToLower(r.Method), r.URL.Path); code != http.StatusOK {
			http.Error(w, http.StatusText(code), code)
			return
		}
		h.ServeHTTP(w, r)
	})
}

type question struct {
	token      [sha256.Size]byte // a hash: what is kept opens nothing
	verb, path string
}

type answer struct {
	code  int
	until time.Time
}

type authorizer struct {
	reviews Reviews
	now     func() time.Time
	limit   *rate.Limiter

	mu      sync.Mutex
	answers map[question]answer
}

// ask returns the status code that is the answer.
func (a *authorizer) ask(ctx context.Context, token, verb, path string) int {
	q := question{sha256.Sum256([]byte(token)), verb, path}
	now := a.now()
	a.mu.Lock()
	known, ok := a.answers[q]
	a.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.code
	}
	if !a.limit.AllowN(now, 1) {
		return http.StatusTooManyRequests
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	code, err := a.review(ctx, token, verb, path)
	if err != nil {
		return http.StatusServiceUnavailable
	}
	keep := rememberNo
	if code == http.StatusOK {
		keep = rememberYes
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.answers) >= remembered {
		a.forget(now)
	}
	a.answers[q] = answer{code, now.Add(keep)}
	return code
}

// forget drops what is too old, and everything if that is nothing.
func (a *authorizer) forget(now time.Time) {
	before := len(a.answers)
	for q, known := range a.answers {
		if !now.Before(known.until) {
			delete(a.answers, q)
		}
	}
	if len(a.answers) == before {
		clear(a.answers)
	}
}

func (a *authorizer) review(ctx context.Context, token, verb, path string) (int, error) {
	who, err := a.reviews.Tokens.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	if !who.Status.Authenticated {
		return http.StatusUnauthorized, nil
	}
	user := who.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for key, values := range user.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	may, err := a.reviews.Access.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: verb},
	}}, metav1.CreateOptions{})
	if err != nil {
		return 0, err
	}
	if !may.Status.Allowed {
		return http.StatusForbidden, nil
	}
	return http.StatusOK, nil
}
